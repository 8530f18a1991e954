from registry_server.health.self_preservation import SelfPreservation


def protection() -> SelfPreservation:
    return SelfPreservation(share=0.5, minimum=10, longest=300.0)


def take(subject: SelfPreservation, names: range, *, failed: bool, up: bool = True) -> None:
    for name in names:
        subject.take(str(name), failed=failed, up=up)


def test_half_of_200_failing_at_once_begins_it() -> None:
    subject = protection()
    take(subject, range(200), failed=False)
    take(subject, range(99), failed=True)
    assert subject.judge(0) is None
    take(subject, range(100), failed=True)
    assert subject.judge(0) is True
    assert subject.active
    assert subject.judge(1) is None


def test_a_small_fleet_that_fails_is_believed() -> None:
    subject = protection()
    take(subject, range(9), failed=True)
    assert subject.judge(0) is None


def test_services_that_are_known_to_be_down_prove_nothing() -> None:
    subject = protection()
    take(subject, range(100), failed=True, up=False)
    take(subject, range(100, 110), failed=False)
    assert subject.judge(0) is None


def test_it_ends_when_they_recover() -> None:
    subject = protection()
    take(subject, range(20), failed=True)
    assert subject.judge(0) is True
    take(subject, range(10), failed=False)
    assert subject.judge(1) is None
    take(subject, range(15), failed=False)
    assert subject.judge(2) is False
    assert not subject.active


def test_it_ends_after_its_time_and_does_not_begin_again_for_the_same_failure() -> None:
    subject = protection()
    take(subject, range(20), failed=True)
    assert subject.judge(0) is True
    assert subject.judge(299.9) is None
    assert subject.judge(300) is False
    take(subject, range(20), failed=True)
    assert subject.judge(301) is None


def test_the_excused_count_again_once_they_have_succeeded() -> None:
    subject = protection()
    take(subject, range(20), failed=True)
    assert subject.judge(0) is True
    assert subject.judge(300) is False
    take(subject, range(20), failed=False)
    take(subject, range(20), failed=True)
    assert subject.judge(301) is True


def test_a_service_that_is_gone_no_longer_counts() -> None:
    subject = protection()
    take(subject, range(20), failed=True)
    for name in range(11):
        subject.forget(str(name))
    assert (subject.failing, subject.counted) == (9, 9)
    assert subject.judge(0) is None


def test_services_count_from_the_time_on_that_they_are_expected() -> None:
    """So that a process that has just taken on many does not doubt itself for the first few that fail."""
    subject = protection()
    for name in range(100):
        subject.expect(str(name), up=True)
    assert (subject.failing, subject.counted) == (0, 100)
    take(subject, range(49), failed=True)
    assert subject.judge(0) is None
    take(subject, range(50), failed=True)
    assert subject.judge(0) is True


def test_services_that_are_expected_to_be_down_do_not_count() -> None:
    subject = protection()
    for name in range(100):
        subject.expect(str(name), up=False)
    assert (subject.failing, subject.counted) == (0, 0)
    assert subject.judge(0) is None


def test_a_service_that_somebody_says_is_down_no_longer_counts() -> None:
    subject = protection()
    take(subject, range(20), failed=True)
    for name in range(11):
        subject.expect(str(name), up=False)
    assert (subject.failing, subject.counted) == (9, 9)
    assert subject.judge(0) is None
    subject.expect("0", up=True)
    assert (subject.failing, subject.counted) == (9, 10), "it has not failed since"


def test_a_service_that_is_down_by_its_failures_does_not_count_from_its_next_result_on() -> None:
    subject = protection()
    take(subject, range(10), failed=True)
    assert subject.counted == 10
    take(subject, range(10), failed=True, up=False)
    assert (subject.failing, subject.counted) == (0, 0)


def test_the_same_service_fails_once_however_often_it_fails() -> None:
    subject = protection()
    for _ in range(100):
        take(subject, range(9), failed=True)
    assert (subject.failing, subject.counted) == (9, 9)
    assert subject.judge(0) is None


def test_what_is_excused_stays_so_while_it_fails_whatever_is_expected_of_it() -> None:
    subject = protection()
    take(subject, range(20), failed=True)
    assert subject.judge(0) is True
    assert subject.judge(300) is False
    for name in range(20):
        subject.expect(str(name), up=True)
    assert (subject.failing, subject.counted) == (0, 0)
    subject.forget("0")
    subject.expect("0", up=True)
    assert (subject.failing, subject.counted) == (0, 1), "one that is let go and taken on again is as any other"


def test_while_it_lasts_it_neither_begins_again_nor_ends_for_a_few_that_recover() -> None:
    subject = protection()
    take(subject, range(100), failed=True)
    assert subject.judge(0) is True
    for recovered in range(1, 75):
        take(subject, range(recovered), failed=False)
        assert subject.judge(1) is None
        assert subject.active
    take(subject, range(75), failed=False)
    assert subject.judge(1) is False


def test_it_ends_when_all_that_failed_are_gone() -> None:
    subject = protection()
    take(subject, range(20), failed=True)
    assert subject.judge(0) is True
    for name in range(20):
        subject.forget(str(name))
    assert subject.judge(1) is False


def test_it_can_begin_again_after_it_has_ended() -> None:
    subject = protection()
    for begin in (0, 1000):
        take(subject, range(20), failed=True)
        assert subject.judge(begin) is True
        assert subject.judge(begin + 299) is None, "its time counts from its own beginning"
        take(subject, range(20), failed=False)
        assert subject.judge(begin + 299) is False
