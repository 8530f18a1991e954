"""How often, and how many at a time."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Final

from registry_server.errors import LimitExceeded, RateLimited

MOST_BUCKETS: Final = 10_000
"""Callers that are told apart; of more, the oldest is forgotten."""


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
