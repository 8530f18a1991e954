"""``PauseDetector``: detects that this process was paused."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

import structlog

_CHECK_INTERVAL_SECONDS: Final = 0.1
_MIN_PAUSE_SECONDS: Final = 0.5
"""A gap of this length between two checks is a pause; a busy event loop checks much more often."""

_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

log = structlog.get_logger(__name__)


def time_with_sleep() -> float:
    """Return a clock in seconds that continues while the machine sleeps, where the platform has one."""
    return time.clock_gettime(_CLOCK)


class PauseDetector:
    """Detects that this process was stopped or swapped out, or that its machine slept.

    A timeout that expired during a pause is not the peer's fault.
    """

    def __init__(self, on_end: Callable[[float], None], now: Callable[[], float] = time_with_sleep) -> None:
        """Start with the current time.

        Args:
            on_end: Called after each pause with its length in seconds.
            now: Clock, in seconds.
        """
        self._on_end = on_end
        self._now = now
        self._last = now()
        self.count = 0
        """Number of pauses so far."""
        self.ended = -math.inf
        """End of the last pause, in monotonic seconds."""

    def check(self) -> int:
        """Check the clock and return the number of pauses so far.

        Call it before and after an operation with a timeout: after a pause, tasks resume in no particular order.
        """
        now = self._now()
        gap, self._last = now - self._last, now
        if gap > _MIN_PAUSE_SECONDS:
            self.count += 1
            self.ended = time.monotonic()
            log.warning("process pause detected; probes in flight are ignored", pause_seconds=round(gap, 1))
            self._on_end(gap)
        return self.count

    def reset(self) -> None:
        """Start measuring now, ignoring the time before."""
        self._last = self._now()

    async def run(self) -> None:
        """Check periodically until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_SECONDS)
            self.check()
