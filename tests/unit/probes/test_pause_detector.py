import asyncio
import time

import pytest

from registry_server.probes.pause_detector import PauseDetector, time_with_sleep
from registry_server.runtime.tasks import cancel
from tests.support.waiting import until

TIMEOUT = 20.0


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def detector() -> tuple[PauseDetector, Clock, list[float]]:
    clock, gaps = Clock(), list[float]()
    return PauseDetector(gaps.append, clock), clock, gaps


def test_a_process_that_looks_often_enough_never_paused() -> None:
    subject, clock, gaps = detector()
    for _ in range(100):
        clock.now += 0.4
        assert subject.check() == 0
    assert gaps == []


def test_pause_is_reported_once_with_its_length() -> None:
    subject, clock, gaps = detector()
    clock.now += 12.5
    assert subject.check() == 1
    assert subject.check() == 1
    assert gaps == [12.5]

    clock.now += 0.1
    assert subject.check() == 1
    clock.now += 3600
    assert subject.check() == 2
    assert gaps == [12.5, 3600]


@pytest.mark.parametrize(("gap", "paused"), [(0.49, False), (0.5, False), (0.51, True)])
def test_gap_of_more_than_half_a_second_is_a_pause(gap: float, paused: bool) -> None:  # noqa: FBT001
    subject, clock, _ = detector()
    clock.now = 0.0
    subject.check()
    subject.count = 0
    clock.now = gap
    assert (subject.check() == 1) is paused


def test_clock_that_is_set_back_is_no_pause() -> None:
    subject, clock, gaps = detector()
    clock.now -= 3600
    assert subject.check() == 0
    clock.now += 0.1
    assert subject.check() == 0
    assert gaps == []


def test_listener_sees_the_pause_counted_and_may_check_again() -> None:
    clock = Clock()
    counts: list[int] = []
    subject = PauseDetector(lambda _: counts.append(subject.check()), clock)
    clock.now += 10
    assert subject.check() == 1
    assert counts == [1]


async def test_running_detector_checks_periodically() -> None:
    clock, gaps = Clock(), list[float]()
    subject = PauseDetector(gaps.append, clock, check_interval_seconds=0.001)
    clock.now += 600  # before the detector runs
    subject.reset()
    task = asyncio.create_task(subject.run())
    try:
        await asyncio.sleep(0)
        assert subject.check() == 0, "time before the start is no pause"
        clock.now += 7
        async with asyncio.timeout(TIMEOUT):
            while not gaps:
                await asyncio.sleep(0.001)
        assert gaps == [7]
    finally:
        await cancel([task])


def test_clock_is_monotonic() -> None:
    assert time_with_sleep() <= time_with_sleep()


@pytest.mark.slow
async def test_lag_of_the_event_loop_is_measured_and_forgotten() -> None:
    subject = PauseDetector(lambda _: None, check_interval_seconds=0.01)
    running = asyncio.create_task(subject.run())
    try:
        await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - blocks the event loop
        await asyncio.sleep(0.02)
        assert 0.1 < subject.lag <= 0.5
        await until(lambda: subject.lag < 0.1)
    finally:
        await cancel([running])
