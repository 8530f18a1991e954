"""``PauseDetector``: notices that this process stood still."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

import structlog

_LOOK_EVERY: Final = 0.1
"""Seconds."""
_LONGEST_GAP: Final = 0.5
"""Seconds between two looks from which on nothing ran meanwhile; a busy event loop comes round much sooner."""

_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

log = structlog.get_logger(__name__)


def time_with_sleep() -> float:
    """Seconds of a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(_CLOCK)


class PauseDetector:
    """Tells whether this process ran all the time: it may be stopped, swapped out, or its machine asleep.

    What a peer did not do while nobody listened is not the peer's fault.
    """

    def __init__(self, on_end: Callable[[float], None], now: Callable[[], float] = time_with_sleep) -> None:
        """Prepares it.

        Args:
            on_end: Called after each standstill with its length in seconds.
            now: Clock, in seconds.
        """
        self._on_end = on_end
        self._now = now
        self._last = now()
        self.count = 0
        """How often this process stood still."""
        self.ended = -math.inf
        """When the last standstill ended, in monotonic seconds."""

    def look(self) -> int:
        """Looks at the clock; gives how often this process stood still so far.

        To be asked before and after whatever has a timeout: after a standstill it is not said who runs first.
        """
        now = self._now()
        gap, self._last = now - self._last, now
        if gap > _LONGEST_GAP:
            self.count += 1
            self.ended = time.monotonic()
            log.warning("this process stood still: probes under way do not count", seconds=round(gap, 1))
            self._on_end(gap)
        return self.count

    def begin(self) -> None:
        """Begins to count from now: what was before was not looked at."""
        self._last = self._now()

    async def run(self) -> None:
        """Looks often enough, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            self.look()
