"""All errors of the registry, as one tree.

::

    RegistryError                  errors of calls; transports map each class to a status
    ├── InvalidRequest             the request is not valid; contains all violations
    ├── ServiceNotFound
    ├── ServiceExists
    ├── RevisionMismatch           a precondition on the revision failed
    ├── InstanceSuperseded         another instance has taken the name over
    ├── WriteConflict              other writers changed the service on every attempt; safe to retry
    ├── RevisionNotReached         this process did not reach the requested revision in time
    ├── CursorExpired              the watch cannot resume without missing events
    ├── WatcherTooSlow             the watcher's buffer is full
    ├── StoreUnavailable           Redis does not respond; safe to retry
    │   └── NotReplicated          the change was committed, but too few replicas confirmed it
    ├── ShuttingDown               this process is draining; retry on another one
    ├── Overloaded                 this process is at a limit; nothing was done
    ├── ProbingDisabled            this server does not probe services
    ├── Unauthenticated            the credential is missing or not accepted
    ├── IssuerUnavailable          the keys to verify a token cannot be fetched
    ├── PermissionDenied           the caller's role or ownership does not allow the call
    ├── RateLimited                the caller made too many calls; ``retry_after`` is the delay
    └── LimitExceeded              the caller has reached a limit on concurrent or owned objects
    ConfigurationError             the server cannot start with its configuration

``reason`` is the stable identifier for clients: ``google.rpc.ErrorInfo.reason`` in gRPC, ``error.code`` in REST.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, TypeAlias

from ossa_common.violations import Violation


class RegistryError(Exception):
    """Base class of the errors that a call may return."""

    reason: ClassVar[str] = "INTERNAL"

    @property
    def metadata(self) -> dict[str, str]:
        """Details for programs: keys in lowerCamelCase, values as text."""
        return {}


class InvalidRequest(RegistryError):
    """The request is not valid; ``violations`` contains every invalid field, not only the first."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[Violation]) -> None:
        if not violations:
            raise ValueError("an InvalidRequest needs at least one violation")
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{field}: {description}" for field, description in self.violations))


class Removal(NamedTuple):
    """When and why a service was removed."""

    revision: int
    at: str
    """ISO 8601."""
    reason: str
    """Word of an ``EventReason``."""


class ServiceNotFound(RegistryError):
    """No service has this name."""

    reason = "SERVICE_NOT_FOUND"

    def __init__(self, name: str, removal: Removal | None = None) -> None:
        self.name = name
        self.removal = removal
        super().__init__(f"service {name!r} is not registered")

    @property
    def metadata(self) -> dict[str, str]:
        """The requested name and, if it is known, when and why the service was removed."""
        details = {"name": self.name}
        if self.removal is not None:
            revision, at, reason = self.removal
            details |= {"removedRevision": str(revision), "removedAt": at, "removedReason": reason}
        return details


class ServiceExists(RegistryError):
    """A service with this name exists and the call may only create one."""

    reason = "SERVICE_EXISTS"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"service {name!r} is already registered")

    @property
    def metadata(self) -> dict[str, str]:
        """The name of the existing service."""
        return {"name": self.name}


class RevisionMismatch(RegistryError):
    """The service is not at the expected revision."""

    reason = "REVISION_MISMATCH"

    def __init__(self, name: str, expected: int, actual: int) -> None:
        self.name, self.expected, self.actual = name, expected, actual
        super().__init__(f"service {name!r} is at revision {actual}, not {expected}")

    @property
    def metadata(self) -> dict[str, str]:
        """Name, expected and actual revision."""
        return {"name": self.name, "expectedRevision": str(self.expected), "actualRevision": str(self.actual)}


class InstanceSuperseded(RegistryError):
    """Another instance has taken the name over; nothing was changed. Retrying does not help."""

    reason = "INSTANCE_SUPERSEDED"

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"service {name!r} belongs to another instance, which registered it later")

    @property
    def metadata(self) -> dict[str, str]:
        """The name of the service."""
        return {"name": self.name}


class WriteConflict(RegistryError):
    """Other writers changed the service on every attempt of this write. Safe to retry."""

    reason = "WRITE_CONFLICT"

    def __init__(self, name: str) -> None:
        super().__init__(f"service {name!r} was changed concurrently on every attempt; try again")


class RevisionNotReached(RegistryError):
    """This process did not reach the requested revision in time."""

    reason = "REVISION_NOT_REACHED"

    def __init__(self, requested: int, current: int) -> None:
        super().__init__(f"revision {requested} was not reached in time; this process is at revision {current}")


class CursorExpired(RegistryError):
    """Changes after this cursor are no longer available; the client must start again with a snapshot."""

    reason = "CURSOR_EXPIRED"

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; start over with include_snapshot")


class WatcherTooSlow(RegistryError):
    """The watcher read more slowly than changes arrived. It can resume from its last cursor."""

    reason = "WATCHER_TOO_SLOW"

    def __init__(self, cause: str) -> None:
        super().__init__(f"the watcher fell behind: {cause}; resume from the last cursor")


class StoreFault(NamedTuple):
    """Why a command to Redis failed, for operators. It names no host and no secret."""

    command: str
    """Name of the command, such as ``XREAD``, or ``ZADD in sweep.lua``."""
    key: str
    """Key or pattern of keys that it concerns; empty if that is not known."""
    cause: str
    """What Redis answered, or what happened instead."""
    temporary: bool
    """Whether Redis may accept the command later without a change of its users, configuration or data."""

    def __str__(self) -> str:
        where = " ".join(filter(None, (self.command, self.key)))
        return f"{where}: {self.cause}" if where else self.cause


class StoreUnavailable(RegistryError):
    """Redis does not respond, or refuses a command. A failed write may have been committed; it is safe to retry."""

    reason = "STORE_UNAVAILABLE"
    retry_after: ClassVar[float] = 1.0

    def __init__(self, reason: str = "the store does not respond", fault: StoreFault | None = None) -> None:
        """Initialise the error; clients receive the reason, operators the fault."""
        self.fault = fault
        super().__init__(f"{reason}; try again")


class NotReplicated(StoreUnavailable):
    """The change was committed, but fewer than ``redis.wait_replicas`` replicas confirmed it; a failover may lose it.

    The change is not rolled back, and watchers receive it. Retrying the same registration or update changes nothing and
    succeeds when enough replicas have confirmed.
    """

    reason = "NOT_REPLICATED"

    def __init__(self, revision: int, confirmed: int, wanted: int) -> None:
        self.revision, self.confirmed, self.wanted = revision, confirmed, wanted
        super().__init__(
            f"the change was committed as revision {revision}, but only {confirmed} of {wanted} replicas confirmed it: "
            "a failover may lose it"
        )

    @property
    def metadata(self) -> dict[str, str]:
        """Revision of the change, number of replicas that confirmed it, and the required number."""
        return {
            "revision": str(self.revision),
            "confirmedReplicas": str(self.confirmed),
            "wantedReplicas": str(self.wanted),
        }


class ShuttingDown(RegistryError):
    """This process is shutting down."""

    reason = "SHUTTING_DOWN"
    retry_after: ClassVar[float] = 0.5

    def __init__(self) -> None:
        super().__init__("this server is shutting down; try again or use another server")


class Overloaded(RegistryError):
    """This process is at a limit that all callers share. Nothing was done; another process may accept the call."""

    reason = "OVERLOADED"
    retry_after: ClassVar[float] = 1.0

    def __init__(self, limit: str, maximum: int, reason: str) -> None:
        """Initialise the error; the arguments are those of ``LimitExceeded``, which is about one caller."""
        self.limit, self.maximum = limit, maximum
        super().__init__(f"{reason}; nothing was done, try again later or use another server")

    @property
    def metadata(self) -> dict[str, str]:
        """Name and value of the limit."""
        return {"limit": self.limit, "most": str(self.maximum)}


class ProbingDisabled(RegistryError):
    """This server does not probe services."""

    reason = "PROBING_DISABLED"

    def __init__(self) -> None:
        super().__init__("this server does not probe services")


class Unauthenticated(RegistryError):
    """The credential is missing or not accepted. The message never reveals which part of it is wrong."""

    reason = "UNAUTHENTICATED"

    def __init__(self, message: str = "a credential is required") -> None:
        super().__init__(message)


class IssuerUnavailable(RegistryError):
    """The keys of the token's issuer cannot be fetched, so the token cannot be verified. Safe to retry."""

    reason = "ISSUER_UNAVAILABLE"
    retry_after: ClassVar[float] = 5.0

    def __init__(self, issuer: str) -> None:
        super().__init__(f"the keys of issuer {issuer!r} cannot be fetched; try again")


class PermissionDenied(RegistryError):
    """The caller is authenticated but not allowed to make this call."""

    reason = "PERMISSION_DENIED"

    def __init__(self, message: str) -> None:
        super().__init__(message)


class RateLimited(RegistryError):
    """The caller exceeded its rate limit. Nothing was done."""

    reason = "RATE_LIMITED"

    def __init__(self, retry_after: float, reason: str = "too many calls") -> None:
        """Initialise the error.

        Args:
            retry_after: Seconds until a call may succeed.
            reason: The limit and its setting.
        """
        self.retry_after = retry_after
        super().__init__(f"{reason}; try again later")


class LimitExceeded(RegistryError):
    """The caller has reached a limit on the number of its watches, streams or services."""

    reason = "LIMIT_EXCEEDED"
    retry_after: ClassVar[float] = 5.0

    def __init__(self, limit: str, maximum: int, message: str) -> None:
        """Initialise the error.

        Args:
            limit: Identifier of the limit for programs, such as ``watches``.
            maximum: Value of the limit.
            message: Error text for people.
        """
        self.limit, self.maximum = limit, maximum
        super().__init__(message)

    @property
    def metadata(self) -> dict[str, str]:
        """Name and value of the limit."""
        return {"limit": self.limit, "most": str(self.maximum)}


RetryableError: TypeAlias = (
    StoreUnavailable | ShuttingDown | Overloaded | IssuerUnavailable | RateLimited | LimitExceeded
)
"""Errors with ``retry_after``, the number of seconds to wait before the next attempt."""


class ConfigurationError(Exception):
    """The server cannot start with its configuration. The message names the setting."""
