"""How often, and how many at a time."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final, Self

from registry_server.errors import LimitExceeded, Overloaded, RateLimited

MOST_BUCKETS: Final = 10_000
"""Callers that are told apart; of more, the oldest is forgotten."""


SMALL: Final = 16 << 10
"""Bytes up to which a request counts as a call alone: who sends large ones cannot keep others from small ones."""


class Buckets:
    """A token bucket for each caller.

    As the generic cell rate algorithm (ITU-T I.371): one number a caller, the time at which its bucket is full again.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._full_at: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: Hashable, rate: float, burst: float) -> None:
        """Takes a token.

        Args:
            caller: Whose bucket.
            rate: Tokens that come back each second.
            burst: How many the bucket holds.

        Raises:
            RateLimited: There is none.
        """
        now = self._monotonic()
        full_at = self._full_at.get(caller)
        if full_at is None:
            if len(self._full_at) >= MOST_BUCKETS:
                self._make_room(now)
            full_at = now
        elif full_at < now:
            full_at = now
        full_at += 1 / rate
        excess = full_at - now - burst / rate
        if excess > 1e-9:  # noqa: PLR2004 - what adding up floats leaves
            raise RateLimited(retry_after=excess)
        self._full_at[caller] = full_at

    def _make_room(self, now: float) -> None:
        """Forgets the callers whose bucket is full, which is as if they had never called; else the oldest tenth."""
        full = [caller for caller, full_at in self._full_at.items() if full_at <= now]
        for caller in full or list(self._full_at)[: MOST_BUCKETS // 10]:
            del self._full_at[caller]


class Gauge:
    """Counts what is under way, for each caller and in all."""

    def __init__(self, what: str, most: int) -> None:
        """Makes it.

        Args:
            what: Word for programs, such as ``watches``.
            most: How many there may be in all.
        """
        self._what, self._most = what, most
        self._counts: Counter[Hashable] = Counter()
        self.total = 0
        """How many there are."""

    @contextmanager
    def one(self, caller: Hashable, most: int) -> Iterator[None]:
        """Counts one for as long as the context lasts.

        Raises:
            LimitExceeded: The caller has ``most`` already, or there are too many in all.
        """
        if self._counts[caller] >= most:
            raise LimitExceeded(self._what, most, f"at most {most} {self._what} at a time are taken from one caller")
        if self.total >= self._most:
            raise LimitExceeded(self._what, self._most, f"at most {self._most} {self._what} at a time are served here")
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
    """Counts the calls that are under way, whoever makes them, and the bytes that they hold.

    More of them than the process can answer in the time that clients wait would cost memory and help nobody.
    """

    def __init__(self, most_calls: int, most_bytes: int) -> None:
        self.most_calls, self.most_bytes = most_calls, most_bytes
        self.calls = 0
        """How many there are."""
        self.bytes = 0
        """How much the large ones of their requests are, and of their answers until they are read."""
        self.refused = 0
        """How often it was too much."""


class CallSlot:
    """One of them; as a context manager it ends with the context."""

    __slots__ = ("_all", "_begun", "_bytes")

    def __init__(self, all_: InFlight) -> None:
        self._all, self._begun, self._bytes = all_, False, 0

    def acquire(self, size: int) -> None:
        """Counts it, with a request of so many bytes.

        Raises:
            Overloaded: There are too many already.
        """
        if self._all.calls >= (most := self._all.most_calls):
            self._all.refused += 1
            raise Overloaded("calls", most, f"{most} calls are under way here")
        if size > SMALL:
            self.hold_answer(size)
        self._all.calls += 1
        self._begun = True

    def hold_answer(self, size: int) -> None:
        """Counts more bytes; where no others are held, as many as they are.

        Raises:
            Overloaded: There are too many already.
        """
        if self._all.bytes + size > (most := self._all.most_bytes) and self._all.bytes:
            self._all.refused += 1
            raise Overloaded("call-bytes", most, "too many bytes of requests and answers are held here")
        self._all.bytes += size
        self._bytes += size

    def release(self) -> None:
        """Counts it no longer, if it was counted."""
        self._all.calls -= self._begun
        self._all.bytes -= self._bytes
        self._begun, self._bytes = False, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
