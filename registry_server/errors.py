"""Everything that the registry refuses or fails at, as one tree.

::

    RegistryError                  what a caller may meet; transports map each class to a status
    ├── InvalidRequest             the caller's input; carries every violation
    ├── ServiceNotFound
    ├── ServiceExists
    ├── RevisionMismatch           a precondition on the revision does not hold
    ├── WriteConflict              lost the race against other writers too often; safe to repeat
    ├── RevisionNotReached         the wanted revision did not arrive within the deadline
    ├── CursorExpired              the watch cannot go on without a gap
    ├── WatcherTooSlow             the watcher's buffer is full
    ├── StoreUnavailable           Redis does not answer; safe to repeat
    │   └── NotReplicated          the change was made, but too few replicas have it
    ├── ShuttingDown               this process drains; go to another or come back
    ├── Overloaded                 this process has as much under way as it takes; nothing was done
    ├── ProbingDisabled            this server does not probe
    ├── Unauthenticated            no credential, or one that is not accepted
    ├── IssuerUnavailable          the keys that would verify a token cannot be had
    ├── PermissionDenied           the caller's role, or the owner of the service, does not allow it
    ├── RateLimited                too many calls; ``retry_after`` tells how long to wait
    └── LimitExceeded              too many of something at once
    ConfigurationError             the server cannot start as it is configured

``reason`` is the UPPER_SNAKE word that clients may switch on (``google.rpc.ErrorInfo.reason``, ``error.code`` in REST).
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, TypeAlias


class Violation(NamedTuple):
    """One bad field: its path in the request, such as ``service.capabilities[1].name``, and what is wrong."""

    field: str
    description: str


class RegistryError(Exception):
    """Root of what a caller may meet."""

    reason: ClassVar[str] = "INTERNAL"

    @property
    def metadata(self) -> dict[str, str]:
        """Facts for programs: keys in lowerCamelCase, values as text."""
        return {}


class InvalidRequest(RegistryError):
    """The request breaks the contract; ``violations`` names every bad field, not only the first."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation]) -> None:
        if not violations:
            raise ValueError("an invalid request has at least one violation")
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{field}: {description}" for field, description in self.violations))


class ServiceNotFound(RegistryError):
    """No service has this name."""

    reason = "SERVICE_NOT_FOUND"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"service {name!r} is not registered")

    @property
    def metadata(self) -> dict[str, str]:
        """The name that was asked for."""
        return {"name": self.name}


class ServiceExists(RegistryError):
    """The name is taken and the caller asked to create only."""

    reason = "SERVICE_EXISTS"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"service {name!r} is registered already")

    @property
    def metadata(self) -> dict[str, str]:
        """The name that is taken."""
        return {"name": self.name}


class RevisionMismatch(RegistryError):
    """The service is not at the revision that the caller expected."""

    reason = "REVISION_MISMATCH"

    def __init__(self, name: str, expected: int, actual: int) -> None:
        self.name, self.expected, self.actual = name, expected, actual
        super().__init__(f"service {name!r} is at revision {actual}, not {expected}")

    @property
    def metadata(self) -> dict[str, str]:
        """Name, expected and actual revision."""
        return {"name": self.name, "expectedRevision": str(self.expected), "actualRevision": str(self.actual)}


class WriteConflict(RegistryError):
    """Other writers changed the service each time this write was tried. Safe to repeat."""

    reason = "WRITE_CONFLICT"

    def __init__(self, name: str) -> None:
        super().__init__(f"service {name!r} is being changed by others; try again")


class RevisionNotReached(RegistryError):
    """This process did not hold the wanted revision in time."""

    reason = "REVISION_NOT_REACHED"

    def __init__(self, wanted: int, held: int) -> None:
        super().__init__(f"revision {wanted} was not reached in time; this process holds {held}")


class CursorExpired(RegistryError):
    """The changes after this cursor are no longer all at hand: start over with a snapshot."""

    reason = "CURSOR_EXPIRED"

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; start over with include_snapshot")


class WatcherTooSlow(RegistryError):
    """The watcher does not read as fast as changes happen; its last cursor is good to resume from."""

    reason = "WATCHER_TOO_SLOW"

    def __init__(self, waiting: int) -> None:
        super().__init__(f"the watcher fell behind: {waiting} events were waiting; resume from the last cursor")


class StoreUnavailable(RegistryError):
    """Redis does not answer. A write that failed so may or may not have been committed; it is safe to repeat."""

    reason = "STORE_UNAVAILABLE"
    retry_after: ClassVar[float] = 1.0

    def __init__(self, why: str = "the store does not answer") -> None:
        super().__init__(f"{why}; try again")


class NotReplicated(StoreUnavailable):
    """The change was made, but fewer replicas than ``redis.wait_replicas`` have it: a failover now may lose it.

    Watchers are told of it, and it is not taken back. The same registration or update again changes nothing, and
    answers once there are enough replicas.
    """

    reason = "NOT_REPLICATED"

    def __init__(self, revision: int, confirmed: int, wanted: int) -> None:
        self.revision, self.confirmed, self.wanted = revision, confirmed, wanted
        super().__init__(
            f"the change was made, as revision {revision}, but only {confirmed} of {wanted} replicas have it yet: "
            "a failover now may lose it"
        )

    @property
    def metadata(self) -> dict[str, str]:
        """Revision of the change, how many replicas have it and how many should."""
        return {
            "revision": str(self.revision),
            "confirmedReplicas": str(self.confirmed),
            "wantedReplicas": str(self.wanted),
        }


class ShuttingDown(RegistryError):
    """This process drains."""

    reason = "SHUTTING_DOWN"
    retry_after: ClassVar[float] = 0.5

    def __init__(self) -> None:
        super().__init__("this server is shutting down; go on with another or try again")


class Overloaded(RegistryError):
    """This process has as much under way as it takes; nothing was done, and another process may take it."""

    reason = "OVERLOADED"
    retry_after: ClassVar[float] = 1.0

    def __init__(self, limit: str, most: int, why: str) -> None:
        """Names the limit; arguments as those of ``LimitExceeded``, which is about one caller."""
        self.limit, self.most = limit, most
        super().__init__(f"{why}; nothing was done, try again later or go to another server")

    @property
    def metadata(self) -> dict[str, str]:
        """Which limit, and how much it is."""
        return {"limit": self.limit, "most": str(self.most)}


class ProbingDisabled(RegistryError):
    """This server does not probe services."""

    reason = "PROBING_DISABLED"

    def __init__(self) -> None:
        super().__init__("this server does not probe services")


class Unauthenticated(RegistryError):
    """No credential came with the call, or one that is not accepted. Never says which part of it is wrong."""

    reason = "UNAUTHENTICATED"

    def __init__(self, why: str = "a credential is needed") -> None:
        super().__init__(why)


class IssuerUnavailable(RegistryError):
    """The keys of the issuer of a token cannot be had, so that nobody can tell whether it is valid. Safe to repeat."""

    reason = "ISSUER_UNAVAILABLE"
    retry_after: ClassVar[float] = 5.0

    def __init__(self, issuer: str) -> None:
        super().__init__(f"the keys of issuer {issuer!r} cannot be read now; try again")


class PermissionDenied(RegistryError):
    """The caller is known but may not do this."""

    reason = "PERMISSION_DENIED"

    def __init__(self, why: str) -> None:
        super().__init__(why)


class RateLimited(RegistryError):
    """The caller makes more calls than it may; nothing was done."""

    reason = "RATE_LIMITED"

    def __init__(self, retry_after: float, what: str = "too many calls") -> None:
        """Says when the next call has a chance, in seconds."""
        self.retry_after = retry_after
        super().__init__(f"{what}; try again later")


class LimitExceeded(RegistryError):
    """The caller has as many of something as it may have."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, limit: str, most: int, why: str, *, retry_after: float = 5.0) -> None:
        """Names the limit.

        Args:
            limit: Word for programs, such as ``watches``.
            most: How many there may be.
            why: What a person is told.
            retry_after: Seconds after which another try has a chance.
        """
        self.limit, self.most, self.retry_after = limit, most, retry_after
        super().__init__(why)

    @property
    def metadata(self) -> dict[str, str]:
        """Which limit, and how much it is."""
        return {"limit": self.limit, "most": str(self.most)}


RetryableError: TypeAlias = (
    StoreUnavailable | ShuttingDown | Overloaded | IssuerUnavailable | RateLimited | LimitExceeded
)
"""Errors that tell by ``retry_after`` how many seconds to wait before the next try."""


class ConfigurationError(Exception):
    """The server cannot start as it is configured; the message names the setting."""
