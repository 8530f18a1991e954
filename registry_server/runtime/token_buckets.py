"""``TokenBuckets``: limits a rate for each of many keys, such as calls, bytes or log lines of a caller."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

_MAX_KEYS: Final = 10_000
_ROUNDING: Final = 1e-9
"""Seconds by which additions of floats may be wrong."""


class TokenBuckets:
    """A token bucket for each key.

    Implements the generic cell rate algorithm (ITU-T I.371): it stores one number per key, the time at which its bucket
    is full again. Beyond the maximum number of keys, the bucket that was not used for the longest time is dropped.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, max_keys: int = _MAX_KEYS) -> None:
        self._monotonic = monotonic
        self._max_keys = max_keys
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()
        """Least recently used first. With an LRU cache of cachetools, ``take`` would need 2 µs more for every call."""

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, key: Hashable, rate: float, burst: float, tokens: float = 1) -> float:
        """Take tokens if the bucket has them.

        Args:
            key: Owner of the bucket.
            rate: Tokens added per second.
            burst: Capacity of the bucket; ``math.inf`` = take them in any case, and let the key pay off the debt.
            tokens: Number of tokens to take.

        Returns:
            0 if they were taken; otherwise the seconds until the bucket will have them.
        """
        now = self._monotonic()
        full_at = max(self._full_at.get(key, now), now) + tokens / rate
        excess = full_at - now - burst / rate
        if excess <= _ROUNDING:
            excess = 0.0
            self._full_at[key] = full_at
        if key in self._full_at:
            self._full_at.move_to_end(key)
        if len(self._full_at) > self._max_keys:
            self._full_at.popitem(last=False)
        return excess

    def seconds_until_full(self, key: Hashable) -> float:
        """Return the time until the bucket is full again."""
        now = self._monotonic()
        return max(self._full_at.get(key, now) - now, 0.0)
