"""What is counted while the server works; ``telemetry`` reads it when it is asked for metrics.

Plain numbers without locks: whoever counts and whoever reads are in one thread, that of the event loop.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

CALL_BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the classes in which the length of calls is counted, in seconds."""


class Histogram:
    """How many values there were in each class, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = CALL_BOUNDS) -> None:
        self.bounds = bounds
        """Upper bounds, ascending; a value equal to one is within it."""
        self.counts = [0] * (len(bounds) + 1)
        """Values of each class; what is above the last bound is in one more."""
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class CallCounters:
    """Calls of one kind: by how they ended, and how long they took."""

    __slots__ = ("ended", "seconds")

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.seconds = Histogram()

    def count(self, how: str, seconds: float) -> None:
        """Counts a call that has ended."""
        self.ended[how] += 1
        self.seconds.observe(seconds)


class CacheCounters:
    """How often a cache had the answer."""

    __slots__ = ("hits", "misses")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
