import asyncio

import pytest

from registry_server.probes import pause_detector as module
from registry_server.probes.pause_detector import PauseDetector, time_with_sleep
from registry_server.runtime.tasks import cancel

TIMEOUT = 20.0


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def watched() -> tuple[PauseDetector, Clock, list[float]]:
    clock, gaps = Clock(), list[float]()
    return PauseDetector(gaps.append, clock), clock, gaps


def test_a_process_that_looks_often_enough_never_stood_still() -> None:
    subject, clock, gaps = watched()
    for _ in range(100):
        clock.now += 0.4
        assert subject.look() == 0
    assert gaps == []


def test_a_gap_is_told_once_with_its_length() -> None:
    subject, clock, gaps = watched()
    clock.now += 12.5
    assert subject.look() == 1
    assert subject.look() == 1
    assert gaps == [12.5]

    clock.now += 0.1
    assert subject.look() == 1
    clock.now += 3600
    assert subject.look() == 2
    assert gaps == [12.5, 3600]


@pytest.mark.parametrize(("gap", "stood_still"), [(0.49, False), (0.5, False), (0.51, True)])
def test_half_a_second_is_what_a_busy_loop_may_take(gap: float, stood_still: bool) -> None:  # noqa: FBT001
    subject, clock, _ = watched()
    clock.now = 0.0
    subject.look()
    subject.count = 0
    clock.now = gap
    assert (subject.look() == 1) is stood_still


def test_a_clock_that_goes_back_is_no_standstill() -> None:
    subject, clock, gaps = watched()
    clock.now -= 3600
    assert subject.look() == 0
    clock.now += 0.1
    assert subject.look() == 0
    assert gaps == []


def test_whoever_is_told_finds_it_counted_and_may_look_again() -> None:
    clock = Clock()
    counts: list[int] = []
    subject = PauseDetector(lambda _: counts.append(subject.look()), clock)
    clock.now += 10
    assert subject.look() == 1
    assert counts == [1]


async def test_while_it_runs_it_notices_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.001)
    subject, clock, gaps = watched()
    clock.now += 600  # before it runs
    subject.begin()
    task = asyncio.create_task(subject.run())
    try:
        await asyncio.sleep(0)
        assert subject.look() == 0, "it did not stand still: it did not run yet"
        clock.now += 7
        async with asyncio.timeout(TIMEOUT):
            while not gaps:
                await asyncio.sleep(0.001)
        assert gaps == [7]
    finally:
        await cancel([task])


def test_its_clock_goes_forward() -> None:
    assert time_with_sleep() <= time_with_sleep()
