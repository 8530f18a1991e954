"""``ChangeBudgets``: limits the size of each owner's changes, so that the history has room for those of others."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from registry_server.catalog.change import Change
from registry_server.errors import RateLimited
from registry_server.runtime.token_buckets import TokenBuckets

DEFAULT_BYTES_PER_SECOND: Final = 128 << 10
_BURST_SECONDS: Final = 256
"""A burst of 32 MiB by default: 10,000 services of 1 KiB may be registered and become healthy at once."""
_SERVICES: Final = 10_000
"""Owners of more services, such as operators, may make as many times as many changes."""


class ChangeBudgets:
    """A token bucket of bytes for each owner.

    Every process charges the changes of all processes, as it applies them. A write reserves its size until then.
    Changes that no one asks for, such as the end of a lease, are charged and never refused: they delay
    later ones.
    """

    def __init__(
        self, bytes_per_second: int = DEFAULT_BYTES_PER_SECOND, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the sustained size of the changes of one owner."""
        self._bytes_per_second = bytes_per_second
        self._buckets = TokenBuckets(monotonic)
        self._reserved: Counter[str] = Counter()
        self._services: Counter[str] = Counter()

    def count_services(self, owners: Mapping[str, str]) -> None:
        """Count the services of each owner again."""
        self._services = Counter(owners.values())

    def charge_change(self, change: Change, owner_before: str) -> None:
        """Charge an applied change to its owner, and count the services of owners."""
        if change.owner != owner_before:
            if change.owner:
                self._services[change.owner] += 1
            if owner_before:
                _decrease(self._services, owner_before, 1)
        if owner := change.owner or owner_before:
            self._buckets.take(owner, self._rate(owner), math.inf, change.size)

    @contextmanager
    def reserve(self, owner: str, size: int, quota: int = 0) -> Iterator[None]:
        """Reserve the size of a change until it was applied.

        Args:
            owner: The owner.
            size: Size of the change in bytes.
            quota: Number of services that it may have; 0 = unknown.

        Raises:
            RateLimited: The owner has no budget left.
        """
        rate = self._rate(owner, quota)
        excess = self._buckets.seconds_until_full(owner) + (self._reserved[owner] + size) / rate - _BURST_SECONDS
        if excess > 0:
            reason = f"limit of {rate:.0f} bytes of changes a second for one owner reached"
            raise RateLimited(excess, f"{reason} (limits.change_bytes_per_second)")
        self._reserved[owner] += size
        try:
            yield
        finally:
            _decrease(self._reserved, owner, size)

    def _rate(self, owner: str, quota: int = 0) -> float:
        return self._bytes_per_second * max(1, quota / _SERVICES, self._services[owner] / _SERVICES)


def _decrease(counter: Counter[str], key: str, amount: int) -> None:
    counter[key] -= amount
    if not counter[key]:
        del counter[key]
