import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from registry_server.instrumentation.stalls import StallMonitor
from tests.support.stalls import measured_turns


class LateLoop:
    """An event loop whose timer is late by given seconds, of which the loop's thread runs a share."""

    def __init__(self, *late: float, share: float = 1.0) -> None:
        self._late, self._share = list(late), share
        self.now = 100.0
        self.ran = 0.0

    async def sleep(self, seconds: float) -> None:
        if not self._late:
            raise asyncio.CancelledError
        late = self._late.pop(0)
        self.now += seconds + late
        self.ran += late * self._share

    async def measured(self) -> tuple[StallMonitor, list[Any]]:
        """Return a monitor that has measured this loop, and what it logged."""
        monitor = StallMonitor(sleep=self.sleep, monotonic=lambda: self.now, thread_time=lambda: self.ran)
        with capture_logs() as logs, pytest.raises(asyncio.CancelledError):
            await monitor.run()
        return monitor, list(logs)


async def test_lateness_of_the_timer_is_measured() -> None:
    monitor, logs = await LateLoop(0.0, 0.002, 0.2).measured()
    assert sum(monitor.lag.counts) == 3
    assert monitor.lag.sum == pytest.approx(0.202)
    assert sum(monitor.stalls.counts) == 0
    assert logs == []


async def test_stall_is_counted_and_logged_with_its_processor_time() -> None:
    monitor, logs = await LateLoop(0.0, 3.0, share=0.9).measured()
    assert sum(monitor.stalls.counts) == 1
    assert monitor.stalls.sum == pytest.approx(3.0)
    assert logs == [
        {
            "event": "event loop stalled",
            "log_level": "warning",
            "seconds": 3.0,
            "processor_seconds": 2.7,
            "suppressed": 0,
        }
    ]


async def test_stall_without_processor_time_is_only_counted() -> None:
    monitor, logs = await LateLoop(3.0, share=0.01).measured()
    assert sum(monitor.stalls.counts) == 1
    assert logs == []


async def test_stalls_are_logged_at_most_every_ten_seconds() -> None:
    monitor, logs = await LateLoop(*[0.5] * 40).measured()
    assert sum(monitor.stalls.counts) == 40
    assert [line["suppressed"] for line in logs] == [0, 16, 16]


async def test_detector_of_the_tests_measures_between_polls_of_the_loop() -> None:
    def work() -> None:
        sum(range(1_000_000))

    with measured_turns() as short:
        for _ in range(5):
            work()
            await asyncio.sleep(0)
    with measured_turns() as long:
        for _ in range(5):
            work()
        await asyncio.sleep(0)
    assert 0 < 2 * short.longest < long.longest
