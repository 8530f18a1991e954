"""Limits: call rates, concurrent streams, and calls in flight with their bytes."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from cachetools import LRUCache

from registry_server.errors import LimitExceeded, Overloaded, RateLimited

MAX_BUCKETS: Final = 10_000
"""Callers whose rate is tracked; beyond it, the bucket that was not used for the longest time is dropped."""
SMALL_REQUEST_BYTES: Final = 16 << 10
"""Requests up to this size do not count towards the byte limit: large requests must not block small ones."""


class Buckets:
    """A token bucket for each caller.

    Implements the generic cell rate algorithm (ITU-T I.371): it stores one number per caller, the time at which its
    bucket is full again.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._full_at: LRUCache[Hashable, float] = LRUCache(MAX_BUCKETS)

    def __len__(self) -> int:
        return len(self._full_at)

    def take_token(self, caller: Hashable, rate: float, burst: float) -> None:
        """Take a token.

        Args:
            caller: Owner of the bucket.
            rate: Tokens added per second.
            burst: Capacity of the bucket.

        Raises:
            RateLimited: The bucket is empty.
        """
        now = self._monotonic()
        full_at = max(self._full_at.get(caller, now), now) + 1 / rate
        excess = full_at - now - burst / rate
        if excess > 1e-9:  # noqa: PLR2004 - rounding error of float addition
            raise RateLimited(retry_after=excess)
        self._full_at[caller] = full_at


class Gauge:
    """Counts concurrent streams per caller and in total."""

    def __init__(self, name: str, limit: int) -> None:
        """Set the total limit.

        Args:
            name: Name of the limit in errors, such as ``watches``.
            limit: Maximum for all callers together.
        """
        self._name, self._limit = name, limit
        self._counts: Counter[Hashable] = Counter()
        self.total = 0
        """Current number for all callers."""

    @contextmanager
    def count(self, caller: Hashable, limit: int) -> Iterator[None]:
        """Count one stream while the context is active.

        Raises:
            LimitExceeded: The caller has reached ``limit``, or all callers together have reached the total limit.
        """
        if self._counts[caller] >= limit:
            raise LimitExceeded(self._name, limit, f"limit of {limit} {self._name} per caller reached")
        if self.total >= self._limit:
            raise LimitExceeded(self._name, self._limit, f"limit of {self._limit} {self._name} in this process reached")
        self._counts[caller] += 1
        self.total += 1
        try:
            yield
        finally:
            self.total -= 1
            self._counts[caller] -= 1
            if not self._counts[caller]:
                del self._counts[caller]


class InFlight:
    """Counts the calls in flight of all callers and the bytes they hold.

    Calls beyond what the process can answer before clients time out would only cost memory.
    """

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self.max_calls, self.max_bytes = max_calls, max_bytes
        self.calls = 0
        """Number of calls in flight."""
        self.bytes = 0
        """Bytes of large requests, and of large answers until they are read."""
        self.rejected = 0
        """Number of calls rejected by these limits."""


class CallSlot:
    """One call in flight, with the bytes that it holds."""

    __slots__ = ("_bytes", "_in_flight")

    def __init__(self, in_flight: InFlight, size: int) -> None:
        """Count a call with a request of ``size`` bytes until ``release``.

        Raises:
            Overloaded: A limit is reached; nothing is counted.
        """
        self._in_flight, self._bytes = in_flight, 0
        if in_flight.calls >= (limit := in_flight.max_calls):
            in_flight.rejected += 1
            raise Overloaded("calls", limit, f"limit of {limit} calls in flight reached")
        if size > SMALL_REQUEST_BYTES:
            self.hold_bytes(size)
        in_flight.calls += 1

    def hold_bytes(self, size: int) -> None:
        """Count more bytes. A single call may exceed the limit if no other bytes are held.

        Raises:
            Overloaded: The limit is reached.
        """
        if self._in_flight.bytes + size > (limit := self._in_flight.max_bytes) and self._in_flight.bytes:
            self._in_flight.rejected += 1
            raise Overloaded("call-bytes", limit, f"limit of {limit} bytes of requests and answers reached")
        self._in_flight.bytes += size
        self._bytes += size

    def release(self) -> None:
        """Stop counting the call and its bytes."""
        self._in_flight.calls -= 1
        self._in_flight.bytes -= self._bytes
