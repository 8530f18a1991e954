"""Retry policy: which failures are retried, and how long to wait between attempts.

A call is retried only if both the error and the method permit it. A lost response may belong to a write that the
registry has committed. Repeating an upsert, a heartbeat or a read is harmless. Repeating ``create_only`` or a write at
an ``expected_revision`` is not: the second attempt would conflict with the client's own first one. ``WriteConflict``,
``RateLimited`` and ``Overloaded`` guarantee that nothing was written, so every call may be retried after them.

Delays are exponential with full jitter, as in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), so that
clients which reconnect after an outage do not arrive at the same moment.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from registry_client.errors import (
    DeadlineExceeded,
    Overloaded,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    WatcherTooSlow,
    WriteConflict,
)

_MAX_EXPONENT = 30
"""Keeps ``2 ** failures`` small: a client retries thousands of times during an outage of a week."""
_REOPEN_SECONDS = 1.0
"""Time in which an ended stream must be opened again; it is below the heartbeat interval of the shortest lease."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter; times are in seconds."""

    first: float = 0.1
    """Upper bound of the delay after the first failure; it doubles with each further failure."""
    most: float = 2.0
    """Upper bound of every delay."""
    uniform: Callable[[float, float], float] = field(default=random.uniform, repr=False, compare=False)
    """Source of randomness: returns a number between its two arguments."""

    def delay(self, failures: int, at_least: float = 0.0) -> float:
        """Return the seconds to wait after a number of consecutive failures (1 or more).

        Args:
            failures: Number of consecutive failures.
            at_least: Seconds that the registry requested (``RetryInfo``); the jitter is added to them.
        """
        upper_bound = min(self.most, self.first * 2 ** min(failures - 1, _MAX_EXPONENT))
        return at_least + self.uniform(0, upper_bound)


class StreamEnds:
    """Distinguishes planned ends of successive streams from interruptions.

    Drains, rolling restarts, expired tokens and many proxies end streams that were answered. A new one may still reach
    the process that stops, which resets it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._reopen_until = 0.0
        self.answered = False
        """Whether a message has arrived on the current stream."""

    def is_planned(self, error: RegistryError) -> bool:
        """Return whether the end of the current stream is no interruption, as long as another one is answered soon."""
        answered, self.answered = self.answered, False
        if answered and not isinstance(error, DeadlineExceeded):
            self._reopen_until = self._clock() + _REOPEN_SECONDS
            return True
        return isinstance(error, RegistryUnavailable) and self._clock() < self._reopen_until


def is_retryable(error: RegistryError, *, repeatable: bool) -> bool:
    """Return whether a call that failed with this error may be made again.

    Args:
        error: The error of the failed attempt.
        repeatable: Whether making the call twice has the same effect as making it once.
    """
    if isinstance(error, WriteConflict | RateLimited | Overloaded):
        return True
    # With several targets an attempt has only its share of the deadline: another target may answer in time, or may
    # already hold the revision.
    return repeatable and isinstance(error, RegistryUnavailable | DeadlineExceeded)


def is_resumable(error: RegistryError) -> bool:
    """Return whether a stream that ended with this error is to be opened again."""
    return isinstance(error, RegistryUnavailable | DeadlineExceeded | WatcherTooSlow | RateLimited)
