"""``LogBudget``: bounds the log lines of the same kind, such as those that one caller causes."""

import time
from collections.abc import Callable, Hashable
from typing import Final

from cachetools import LRUCache

from registry_server.runtime.token_buckets import TokenBuckets

LINES_PER_SECOND: Final = 10.0
BURST_LINES: Final = 100
_MAX_KEYS: Final = 1_000
"""Kinds of lines that are counted; beyond it, the one that was not logged for the longest time is forgotten."""


class LogBudget:
    """Admits lines, and counts those that it suppresses."""

    def __init__(
        self,
        lines_per_second: float = LINES_PER_SECOND,
        burst: int = BURST_LINES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the sustained rate of lines of one kind, and how many may follow one another at once."""
        self._rate, self._burst = lines_per_second, burst
        self._buckets = TokenBuckets(monotonic, _MAX_KEYS)
        self._suppressed: LRUCache[Hashable, int] = LRUCache(_MAX_KEYS)

    def take_line(self, key: Hashable = None) -> int | None:
        """Return the number of suppressed lines of a kind before this one; ``None`` = suppress this one too."""
        if self._buckets.take(key, self._rate, self._burst):
            self._suppressed[key] = self._suppressed.get(key, 0) + 1
            return None
        return self._suppressed.pop(key, 0)
