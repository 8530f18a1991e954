from registry_server.health.protection import Protection


def protection() -> Protection:
    return Protection(share=0.5, minimum=10, longest=300.0)


def take(subject: Protection, names: range, *, failed: bool, up: bool = True) -> None:
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
