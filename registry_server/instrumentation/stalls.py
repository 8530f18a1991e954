"""``StallMonitor``: measures how late the event loop runs a timer, and reports its stalls."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from registry_server.instrumentation.counters import Histogram
from registry_server.instrumentation.log_budget import LogBudget

STALL_SECONDS: Final = 0.25
"""Five times the time that one request may take; a stall of a second delays heartbeats and probes noticeably."""
_SAMPLE_SECONDS: Final = 0.1
_LOG_LINES_PER_SECOND: Final = 0.1
_LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_STALL_BOUNDS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

log = structlog.get_logger(__name__)


class StallMonitor:
    """Measures the lateness of a timer in the event loop; every call waited for as long."""

    def __init__(
        self,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.perf_counter,
        thread_time: Callable[[], float] = time.thread_time,
    ) -> None:
        """Start without measurements.

        Args:
            sleep: Sleeps for a number of seconds.
            monotonic: Clock, in seconds.
            thread_time: Returns the processor time of the event loop's thread in seconds.
        """
        self.lag = Histogram(_LAG_BOUNDS)
        """Delay in seconds until a scheduled task ran."""
        self.stalls = Histogram(_STALL_BOUNDS)
        """Delays of more than ``STALL_SECONDS``."""
        self._sleep, self._monotonic, self._thread_time = sleep, monotonic, thread_time
        self._log_budget = LogBudget(_LOG_LINES_PER_SECOND, 1, monotonic)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due, before = self._monotonic() + _SAMPLE_SECONDS, self._thread_time()
            await self._sleep(_SAMPLE_SECONDS)
            late = max(self._monotonic() - due, 0.0)
            self.lag.observe(late)
            if late > STALL_SECONDS:
                self.stalls.observe(late)
                self._log_stall(late, self._thread_time() - before)

    def _log_stall(self, seconds: float, processor_seconds: float) -> None:
        """Log a stall that this process caused itself; the others are pauses, or the machine is overloaded."""
        if processor_seconds < STALL_SECONDS:
            return
        suppressed = self._log_budget.take_line()
        if suppressed is not None:
            log.warning(
                "event loop stalled",
                seconds=round(seconds, 3),
                processor_seconds=round(processor_seconds, 3),
                suppressed=suppressed,
            )
