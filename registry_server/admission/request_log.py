"""``LogBudget``: bounds the lines of the request log that one caller causes."""

import time
from collections.abc import Callable, Hashable
from typing import Final

from cachetools import LRUCache

LINES_PER_SECOND: Final = 10.0
"""Sustained rate of lines about the failed calls of one caller."""
BURST_LINES: Final = 100
"""Lines that may follow one another at once."""
_MAX_CALLERS: Final = 1_000
"""Callers whose lines are counted; beyond it, the one that caused none for the longest time is forgotten."""


class LogBudget:
    """Admits lines of callers, and counts those that it suppresses."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._callers: LRUCache[Hashable, tuple[float, int]] = LRUCache(_MAX_CALLERS)
        """For each caller, when its budget is full again, and the number of suppressed lines since its last one."""

    def take_line(self, caller: Hashable) -> int | None:
        """Return the number of suppressed lines before this one; ``None`` = suppress this one too."""
        now = self._monotonic()
        full_at, suppressed = self._callers.get(caller, (now, 0))
        full_at = max(full_at, now) + 1 / LINES_PER_SECOND
        if full_at - now > BURST_LINES / LINES_PER_SECOND + 1e-9:
            self._callers[caller] = full_at - 1 / LINES_PER_SECOND, suppressed + 1
            return None
        self._callers[caller] = full_at, 0
        return suppressed
