"""Counters that are incremented while the server works and read when metrics are scraped (ADR 0018).

They are plain numbers without locks, because the thread of the event loop is the only one that reads or writes them.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

CALL_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets for call durations, in seconds."""


class Histogram:
    """Number of values in each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = CALL_BOUNDS) -> None:
        self.bounds = bounds
        """Upper bounds, ascending and inclusive."""
        self.counts = [0] * (len(bounds) + 1)
        """Number of values in each bucket, not cumulative. The last bucket holds the values above all bounds."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class CallCounters:
    """Calls of one kind: their number by result, and their durations."""

    __slots__ = ("ended", "in_flight", "seconds")

    def __init__(self) -> None:
        self.in_flight = 0
        """Number of calls that have not ended."""
        self.ended: Counter[str] = Counter()
        """Number of calls that ended, by result."""
        self.seconds = Histogram()

    def count(self, result: str, seconds: float | None) -> None:
        """Count a call that has ended; ``None`` = do not count its duration."""
        self.ended[result] += 1
        if seconds is not None:
            self.seconds.observe(seconds)


class CacheCounters:
    """Hits and misses of a cache."""

    __slots__ = ("hits", "misses")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0


class TransportCounters:
    """Counters of one transport."""

    def __init__(self) -> None:
        self.calls: dict[str, CallCounters] = {}
        """By name of the RPC or route."""
        self.streams: set[str] = set()
        """Names in ``calls`` whose calls are streams."""
        self.caches: dict[str, CacheCounters] = {}
        """Caches of answers, by name."""
        self.slow_readers = 0
        """Number of calls that were ended because their client did not read."""
        self.ended_by_drain: Counter[str] = Counter()
        """Number of calls that ended because the server drains, by RPC. They are logged together."""
