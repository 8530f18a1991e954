"""When and how often a call is made again.

A call is repeated only if what happened allows it *and* the method does: an answer that got lost may be that of a write
that was made. Repeating an upsert, a heartbeat or a read does no harm; repeating ``create_only`` or a write at an
``expected_revision`` would answer that somebody else was there, and that somebody is oneself. ``WriteConflict``,
``RateLimited`` and ``Overloaded`` say that nothing was written, so there everything may be repeated.

Waiting times are exponential with full jitter, as in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015):
after an outage many clients come back, and they should not come at once.
"""

import random
from dataclasses import dataclass

from registry_client.errors import (
    DeadlineExceeded,
    Overloaded,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    WatcherTooSlow,
    WriteConflict,
)


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between tries, in seconds."""

    first: float = 0.1
    """Longest wait after the first failure; doubles with each further one."""
    most: float = 2.0
    """Longest wait at all."""

    def delay(self, failures: int, at_least: float = 0.0) -> float:
        """Seconds to wait after so many failures in a row (1 or more), on top of what the registry asks for."""
        # The exponent is bounded: a registry that is away for a week is tried thousands of times.
        longest = min(self.most, self.first * 2 ** min(failures - 1, 30))
        return at_least + random.uniform(0, longest)  # noqa: S311 - spreads load, keeps no secret


def may_repeat(error: RegistryError, *, repeatable: bool) -> bool:
    """Tells whether a call that failed so may be made again.

    Args:
        error: How it failed.
        repeatable: Whether making it twice is the same as making it once.
    """
    if isinstance(error, WriteConflict | RateLimited | Overloaded):
        return True
    # A deadline that passed was perhaps only the share of one target of several: another one may answer in time, or
    # hold the revision already.
    return repeatable and isinstance(error, RegistryUnavailable | DeadlineExceeded)


def may_resume(error: RegistryError) -> bool:
    """Tells whether a stream that ended so is to be opened again."""
    return isinstance(error, RegistryUnavailable | DeadlineExceeded | WatcherTooSlow | RateLimited)
