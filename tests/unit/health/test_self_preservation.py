from registry_server.health.self_preservation import SelfPreservation


def self_preservation() -> SelfPreservation:
    return SelfPreservation(share=0.5, min_failures=10, max_seconds=300.0)


def add_results(subject: SelfPreservation, names: range, *, failed: bool, up: bool = True) -> None:
    for name in names:
        subject.add_result(str(name), failed=failed, up=up)


def test_it_starts_when_the_share_of_failing_services_is_reached() -> None:
    subject = self_preservation()
    add_results(subject, range(200), failed=False)
    add_results(subject, range(99), failed=True)
    assert subject.update(0) is None
    add_results(subject, range(100), failed=True)
    assert subject.update(0) is True
    assert subject.active
    assert subject.update(1) is None


def test_it_does_not_start_below_the_minimum_number_of_failures() -> None:
    subject = self_preservation()
    add_results(subject, range(9), failed=True)
    assert subject.update(0) is None


def test_results_of_services_that_are_down_do_not_count() -> None:
    subject = self_preservation()
    add_results(subject, range(100), failed=True, up=False)
    add_results(subject, range(100, 110), failed=False)
    assert subject.update(0) is None


def test_it_ends_when_the_share_of_failing_services_has_halved() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert subject.update(0) is True
    add_results(subject, range(10), failed=False)
    assert subject.update(1) is None
    add_results(subject, range(15), failed=False)
    assert subject.update(2) is False
    assert not subject.active


def test_it_ends_at_the_time_limit_and_does_not_restart_at_once() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert subject.update(0) is True
    assert subject.update(299.9) is None
    assert subject.update(300) is False
    add_results(subject, range(20), failed=True)
    assert subject.update(301) is None


def test_excluded_services_count_again_after_a_success() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert subject.update(0) is True
    assert subject.update(300) is False
    add_results(subject, range(20), failed=False)
    add_results(subject, range(20), failed=True)
    assert subject.update(301) is True


def test_forgotten_service_does_not_count() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    for name in range(11):
        subject.forget_service(str(name))
    assert (subject.failing, subject.counted) == (9, 9)
    assert subject.update(0) is None


def test_tracked_services_count_before_their_first_result() -> None:
    """Otherwise a process with many new services would start self-preservation after the first few failures."""
    subject = self_preservation()
    for name in range(100):
        subject.track_service(str(name), up=True)
    assert (subject.failing, subject.counted) == (0, 100)
    add_results(subject, range(49), failed=True)
    assert subject.update(0) is None
    add_results(subject, range(50), failed=True)
    assert subject.update(0) is True


def test_tracked_services_that_are_down_do_not_count() -> None:
    subject = self_preservation()
    for name in range(100):
        subject.track_service(str(name), up=False)
    assert (subject.failing, subject.counted) == (0, 0)
    assert subject.update(0) is None


def test_service_that_is_reported_down_does_not_count() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    for name in range(11):
        subject.track_service(str(name), up=False)
    assert (subject.failing, subject.counted) == (9, 9)
    assert subject.update(0) is None
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
    assert subject.update(0) is None


def test_excluded_service_stays_excluded_until_it_succeeds_or_is_forgotten() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert subject.update(0) is True
    assert subject.update(300) is False
    for name in range(20):
        subject.track_service(str(name), up=True)
    assert (subject.failing, subject.counted) == (0, 0)
    subject.forget_service("0")
    subject.track_service("0", up=True)
    assert (subject.failing, subject.counted) == (0, 1), "forgetting a service ends its exclusion"


def test_it_stays_active_until_enough_services_recover() -> None:
    subject = self_preservation()
    add_results(subject, range(100), failed=True)
    assert subject.update(0) is True
    for recovered in range(1, 75):
        add_results(subject, range(recovered), failed=False)
        assert subject.update(1) is None
        assert subject.active
    add_results(subject, range(75), failed=False)
    assert subject.update(1) is False


def test_it_ends_when_all_failing_services_are_forgotten() -> None:
    subject = self_preservation()
    add_results(subject, range(20), failed=True)
    assert subject.update(0) is True
    for name in range(20):
        subject.forget_service(str(name))
    assert subject.update(1) is False


def test_it_can_start_again_after_it_has_ended() -> None:
    subject = self_preservation()
    for start in (0, 1000):
        add_results(subject, range(20), failed=True)
        assert subject.update(start) is True
        assert subject.update(start + 299) is None, "the time limit is measured from the latest start"
        add_results(subject, range(20), failed=False)
        assert subject.update(start + 299) is False
