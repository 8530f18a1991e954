"""``PauseDetector``: detects that this process was paused."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

import structlog

_CHECK_INTERVAL_SECONDS: Final = 0.1
"""Must be well below the minimum length of a pause."""
_LAG_DECAY: Final = 0.9
"""Factor for each check: a single lag is forgotten after about two seconds."""
_MIN_PAUSE_SECONDS: Final = 0.5
"""A gap of this length between two checks is a pause; a busy event loop checks much more often."""

_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

log = structlog.get_logger(__name__)


def time_with_sleep() -> float:
    """Return the time in seconds of a clock that also runs while the machine sleeps, if the platform has one."""
    return time.clock_gettime(_CLOCK)


class PauseDetector:
    """Detects that this process was stopped or swapped out, or that its machine slept.

    A timeout that expires during a pause is no evidence of a failure of the peer.
    """

    def __init__(
        self,
        on_end: Callable[[float], None],
        now: Callable[[], float] = time_with_sleep,
        *,
        check_interval_seconds: float = _CHECK_INTERVAL_SECONDS,
    ) -> None:
        """Start measuring at the current time.

        Args:
            on_end: Called after each pause with its length in seconds.
            now: Clock, in seconds.
            check_interval_seconds: Time between two checks of ``run``.
        """
        self._on_end = on_end
        self._now = now
        self._check_interval_seconds = check_interval_seconds
        self._last = now()
        self.count = 0
        """Number of pauses so far."""
        self.ended = -math.inf
        """End of the last pause, in monotonic seconds."""
        self.lag = 0.0
        """How late tasks of the event loop recently ran, while ``run`` runs; at most the length of a pause."""

    def check(self) -> int:
        """Check the clock and return the number of pauses so far.

        Call it before and after an operation with a timeout: after a pause, tasks resume in arbitrary order.
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
            before = self._now()
            await asyncio.sleep(self._check_interval_seconds)
            late = min(self._now() - before - self._check_interval_seconds, _MIN_PAUSE_SECONDS)
            self.lag = max(late, self.lag * _LAG_DECAY)
            self.check()
