import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_server.health.self_preservation import SelfPreservation, Transition


def self_preservation() -> SelfPreservation:
    return SelfPreservation(share=0.5, min_failures=10, max_seconds=300.0)


def update(subject: SelfPreservation, now: float) -> bool | None:
    """Return whether self-preservation started or ended for all counted services; ``None`` if neither."""
    changes = subject.update(now)
    assert all(change.owner is None or change.only or not change.started for change in changes)
    return changes[0].started if changes else None


def add_results(subject: SelfPreservation, names: range, *, failed: bool, up: bool = True) -> None:
    for name in names:
        subject.add_result(str(name), failed=failed, up=up)


def test_it_starts_when_the_share_of_failing_services_is_reached() -> None:
    subject = self_preservation()
    add_results(subject, range(200), failed=False)
    add_results(subject, range(99), failed=True)
    assert update(subject, 0) is None
    add_results(subject, range(100), failed=True)
    assert update(subject, 0) is True
    assert subject.active
    assert update(subject, 1) is None


def test_it_does_not_start_below_the_minimum_number_of_failures() -> None:
    subject = self_preservation()
    add_results(subject, range(9), failed=True)
    assert update(subject, 0) is None


def test_results_of_services_that_are_down_do_not_count() -> None:
    subject = self_preservation()
    add_results(subject, range(100), failed=True, up=False)
    add_results(subject, range(100, 110), failed=False)
    assert update(subject, 0) is None


def test_it_ends_when_the_share_of_failing_services_has_halved() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert update(subject, 0) is True
    add_results(subject, range(10), failed=False)
    assert update(subject, 1) is None
    add_results(subject, range(15), failed=False)
    assert update(subject, 2) is False
    assert not subject.active


def test_it_ends_at_the_time_limit_and_does_not_restart_at_once() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert update(subject, 0) is True
    assert update(subject, 299.9) is None
    assert update(subject, 300) is False
    add_results(subject, range(20), failed=True)
    assert update(subject, 301) is None


def test_excluded_services_count_again_after_a_success() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert update(subject, 0) is True
    assert update(subject, 300) is False
    add_results(subject, range(20), failed=False)
    add_results(subject, range(20), failed=True)
    assert update(subject, 301) is True


def test_forgotten_service_does_not_count() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    for name in range(11):
        subject.forget_service(str(name))
    assert (subject.failing, subject.counted) == (9, 9)
    assert update(subject, 0) is None


def test_tracked_services_count_before_their_first_result() -> None:
    """Otherwise a process with many new services would start self-preservation after the first few failures."""
    subject = self_preservation()
    for name in range(100):
        subject.track_service(str(name), up=True)
    assert (subject.failing, subject.counted) == (0, 100)
    add_results(subject, range(49), failed=True)
    assert update(subject, 0) is None
    add_results(subject, range(50), failed=True)
    assert update(subject, 0) is True


def test_tracked_services_that_are_down_do_not_count() -> None:
    subject = self_preservation()
    for name in range(100):
        subject.track_service(str(name), up=False)
    assert (subject.failing, subject.counted) == (0, 0)
    assert update(subject, 0) is None


def test_service_that_is_reported_down_does_not_count() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    for name in range(11):
        subject.track_service(str(name), up=False)
    assert (subject.failing, subject.counted) == (9, 9)
    assert update(subject, 0) is None
    subject.track_service("0", up=True)
    assert (subject.failing, subject.counted) == (9, 10), "no probe has failed since"


def test_service_that_went_down_does_not_count_after_its_next_result() -> None:
    subject = self_preservation()
    add_results(subject, range(10), failed=True)
    assert subject.counted == 10
    add_results(subject, range(10), failed=True, up=False)
    assert (subject.failing, subject.counted) == (0, 0)


def test_repeated_failures_of_a_service_count_once() -> None:
    subject = self_preservation()
    for _ in range(100):
        add_results(subject, range(9), failed=True)
    assert (subject.failing, subject.counted) == (9, 9)
    assert update(subject, 0) is None


def test_excluded_service_stays_excluded_until_it_succeeds_or_is_forgotten() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert update(subject, 0) is True
    assert update(subject, 300) is False
    for name in range(20):
        subject.track_service(str(name), up=True)
    assert (subject.failing, subject.counted) == (0, 0)
    subject.forget_service("0")
    subject.track_service("0", up=True)
    assert (subject.failing, subject.counted) == (0, 1), "forgetting a service ends its exclusion"


def test_it_stays_active_until_enough_services_recover() -> None:
    subject = self_preservation()
    add_results(subject, range(100), failed=True)
    assert update(subject, 0) is True
    for recovered in range(1, 75):
        add_results(subject, range(recovered), failed=False)
        assert update(subject, 1) is None
        assert subject.active
    add_results(subject, range(75), failed=False)
    assert update(subject, 1) is False


def test_it_ends_when_all_failing_services_are_forgotten() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert update(subject, 0) is True
    for name in range(20):
        subject.forget_service(str(name))
    assert update(subject, 1) is False


def test_it_can_start_again_after_it_has_ended() -> None:
    subject = self_preservation()
    for start in (0, 1000):
        add_results(subject, range(20), failed=True)
        assert update(subject, start) is True
        assert update(subject, start + 299) is None, "the time limit is measured from the latest start"
        add_results(subject, range(20), failed=False)
        assert update(subject, start + 299) is False


# Owners.


def track(subject: SelfPreservation, owner: str, count: int, *, failing: int = 0) -> None:
    """Track services of an owner, of which the first ``failing`` fail."""
    for i in range(count):
        subject.track_service(f"{owner}-{i}", up=True, owner=owner)
        subject.add_result(f"{owner}-{i}", failed=i < failing, up=True)


def test_owner_whose_services_fail_protects_only_itself() -> None:
    subject = self_preservation()
    track(subject, "evil", 20, failing=10)
    track(subject, "good", 5)
    assert subject.update(0) == [Transition("evil", started=True, failing=10, counted=20)]
    assert subject.protects("evil")
    assert not subject.protects("good")
    assert (subject.active, subject.protected_owners) == (False, 1)
    track(subject, "evil", 20, failing=5)
    assert subject.update(1) == [Transition("evil", started=False)]
    assert not subject.protects("evil")


@pytest.mark.parametrize(
    ("owners", "services", "failing_owners", "everyone"),
    [
        (3, 2, 3, True),  # an outage of the network of this process
        (3, 2, 2, True),
        (3, 1, 3, True),
        (3, 20, 1, False),
        (3, 1, 2, False),  # two services are too few
        (5, 1, 3, True),
        (5, 100, 2, False),
        (4, 50, 2, True),
        (2, 5, 2, True),
        (2, 4, 2, False),  # as for a single owner, fewer than ten services are too few
        (2, 50, 1, False),
        (1, 10, 1, True),
        (1, 9, 1, False),
    ],
)
def test_failures_of_enough_owners_protect_everyone(
    owners: int, services: int, failing_owners: int, *, everyone: bool
) -> None:
    subject = self_preservation()
    for number in range(owners):
        track(subject, f"owner{number}", services, failing=services if number < failing_owners else 0)
    subject.update(0)
    assert subject.active is everyone
    assert subject.protects(f"owner{owners - 1}") is everyone
    assert subject.protects("without services") is (everyone and owners > 1)


def test_owner_cannot_hide_that_half_of_the_services_of_the_only_other_one_fail() -> None:
    subject = self_preservation()
    track(subject, "evil", 50, failing=50)
    track(subject, "good", 4, failing=3)
    subject.update(0)
    assert subject.protects("evil")
    assert not subject.protects("good")


def test_owner_counts_as_failing_only_if_most_of_its_services_fail() -> None:
    subject = self_preservation()
    for number in range(10):
        track(subject, f"owner{number}", 100, failing=49)
    assert subject.update(0) == []


def test_protection_of_everyone_ends_when_owners_recover() -> None:
    subject = self_preservation()
    for number in range(6):
        track(subject, f"owner{number}", 4, failing=4)
    assert update(subject, 0) is True
    for number, active in enumerate([True, True, True, True, False]):
        track(subject, f"owner{number}", 4, failing=2)
        assert update(subject, 1) is None, "more than a quarter still fail"
        track(subject, f"owner{number}", 4, failing=1)
        assert update(subject, 1) is (None if active else False)


def test_owner_that_fails_alone_is_protected_when_the_others_have_recovered() -> None:
    subject = self_preservation()
    for name in ("a", "b", "c"):
        track(subject, name, 20, failing=20)
    assert update(subject, 0) is True
    track(subject, "a", 20)
    track(subject, "b", 20)
    assert subject.update(100) == [
        Transition(None, started=False),
        Transition("c", started=True, failing=20, counted=20),
    ]
    assert subject.update(399) == []
    assert subject.update(400) == [Transition("c", started=False)]
    assert subject.counted == 40, "services that still fail are excluded"


def test_new_owner_neither_ends_nor_gets_the_protection_of_the_only_one() -> None:
    subject = self_preservation()
    track(subject, "first", 20, failing=20)
    assert subject.update(0) == [Transition("first", started=True, failing=20, counted=20, only=True)]
    assert subject.active
    assert not subject.protects("new"), "its first statuses are published"
    track(subject, "new", 1)
    assert subject.update(1) == []
    assert subject.protects("first")
    assert not subject.protects("new")
    assert not subject.active


def test_end_at_the_time_limit_excludes_failing_services_of_all_owners() -> None:
    subject = self_preservation()
    for name in ("a", "b", "c"):
        track(subject, name, 2, failing=2)
    assert update(subject, 0) is True
    assert update(subject, 300) is False
    assert (subject.failing, subject.counted) == (0, 0)
    for name in ("a", "b", "c"):
        track(subject, name, 2, failing=2)
    assert update(subject, 301) is None


def test_owner_that_fails_again_and_again_is_reported_once_within_the_time_limit() -> None:
    subject = self_preservation()
    track(subject, "good", 1)
    repeated = []
    for now in range(0, 400, 50):
        track(subject, "evil", 10, failing=10)
        repeated += [change.repeated for change in subject.update(now) if change.started]
        track(subject, "evil", 10)
        subject.update(now)
    assert repeated == [False, True, True, True, True, True, False, True]


def test_service_that_changes_its_owner_is_counted_once() -> None:
    subject = self_preservation()
    track(subject, "a", 10, failing=10)
    for i in range(10):
        subject.track_service(f"a-{i}", up=True, owner="b")
    assert (subject.failing, subject.counted) == (0, 10), "no probe has failed since"
    assert subject.update(0) == []
    for i in range(10):
        subject.forget_service(f"a-{i}")
    assert subject.counted == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["result", "track", "forget"]),
            st.integers(0, 8),
            st.sampled_from(["", "a", "b", "c"]),
            st.booleans(),
            st.booleans(),
            st.integers(0, 30),
        ),
        max_size=80,
    )
)
def test_counts_stay_consistent(steps: list[tuple[str, int, str, bool, bool, int]]) -> None:
    subject = SelfPreservation(share=0.5, min_failures=2, max_seconds=100)
    now = 0
    for step, number, owner, one, other, seconds in steps:
        name = str(number)
        if step == "forget":
            subject.forget_service(name)
        else:
            subject.track_service(name, up=one, owner=owner)
            if step == "result":
                subject.add_result(name, failed=other, up=one)
        now += seconds
        subject.update(now)
        fleets = subject._fleets.values()
        shares = [len(fleet.failing) / len(fleet.counted) for fleet in fleets]
        assert subject._starting == sum(share >= 0.5 for share in shares)
        assert subject._continuing == sum(share > 0.25 for share in shares)
        assert all(now - since < 100 for since in subject._since.values())
        assert all(fleet.failing <= fleet.counted for fleet in fleets)
