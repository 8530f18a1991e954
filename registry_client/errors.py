"""What calls of the registry raise, as one tree.

::

    RegistryError                  root; has ``code``, ``reason``, ``metadata`` and ``retry_after``
    ├── InvalidRequest             the request breaks the contract; carries every violation
    ├── ServiceNotFound
    ├── ServiceExists
    ├── RevisionMismatch           a precondition on the revision does not hold
    ├── WriteConflict              other writers were quicker each time
    ├── CursorExpired              a watch cannot go on without a gap
    ├── WatcherTooSlow             the reader of a watch fell behind
    ├── ProbingDisabled            this server does not probe
    ├── Unauthenticated            no token, or one that is not accepted
    ├── PermissionDenied           the token does not allow this
    ├── LimitExceeded              too large, or too many
    │   └── RateLimited            too often; nothing was done
    ├── DeadlineExceeded           no answer in time
    │   └── RevisionNotReached     the process asked does not hold the wanted revision yet
    ├── RegistryUnavailable        nobody answers
    │   ├── StoreUnavailable       the registry does not reach Redis
    │   │   └── NotReplicated      the write was made, but too few replicas of Redis have it
    │   ├── IssuerUnavailable      the registry cannot read the keys that would verify the token
    │   ├── Overloaded             the process asked has too much under way; nothing was done
    │   └── ShuttingDown           the process asked drains
    ├── InternalError              a bug of the registry; its log has the details
    └── NoEndpoint                 ``ServiceCache.resolve`` finds nobody; no call was made

The wire carries a canonical code and a ``google.rpc.ErrorInfo`` whose reason is the finer of the two. ``_BY_REASON``
and ``_BY_CODE`` are the one table from both to these classes.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

_DETAILS_KEY: Final = "grpc-status-details-bin"


class Violation(NamedTuple):
    """One bad field: its path in the request, such as ``service.capabilities[1].name``, and what is wrong."""

    field: str
    description: str


class RegistryError(Exception):
    """Root of what calls of the registry raise.

    Attributes:
        code: Canonical gRPC code.
        reason: UPPER_SNAKE word of the registry, such as ``SERVICE_NOT_FOUND``; empty if the error is gRPC's own.
        metadata: Facts that came with the error, such as ``name``; keys in lowerCamelCase.
        retry_after: Seconds that the registry asks to wait before the next try; 0 if it does not say.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float = 0.0,
        violations: tuple[Violation, ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self._violations = violations


class InvalidRequest(RegistryError):
    """The request breaks the contract. Do not repeat it."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Every bad field."""
        return self._violations


class ServiceNotFound(RegistryError):
    """No service has this name; ``metadata["name"]`` says which."""

    default_code = grpc.StatusCode.NOT_FOUND


class ServiceExists(RegistryError):
    """The name is taken and ``create_only`` was asked for."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class RevisionMismatch(RegistryError):
    """The service changed since it was read: read it again, decide again, write again."""

    default_code = grpc.StatusCode.ABORTED

    @property
    def actual_revision(self) -> int:
        """Revision that the service is at; 0 if the registry did not say."""
        return int(self.metadata.get("actualRevision", "0"))


class WriteConflict(RegistryError):
    """Other writers were quicker each time; nothing was written."""

    default_code = grpc.StatusCode.ABORTED


class CursorExpired(RegistryError):
    """The changes after this cursor are no longer all at hand: start over with a snapshot."""

    default_code = grpc.StatusCode.OUT_OF_RANGE


class WatcherTooSlow(RegistryError):
    """The reader of a watch fell behind. ``Watch`` resumes by itself and does not raise it."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ProbingDisabled(RegistryError):
    """This server does not probe services: report the status instead."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class Unauthenticated(RegistryError):
    """No token was sent, or one that the registry does not accept."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(RegistryError):
    """The token does not allow this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class LimitExceeded(RegistryError):
    """A message is too large for the server, or a quota is used up."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class RateLimited(LimitExceeded):
    """This client makes more calls than it may. Nothing was done: calls are made again after ``retry_after``."""


class DeadlineExceeded(RegistryError):
    """No answer came in time. A write may or may not have been made."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class RevisionNotReached(DeadlineExceeded):
    """The process that was asked does not hold the wanted revision yet."""


class RegistryUnavailable(RegistryError):
    """Nobody answers. A write may or may not have been made."""

    default_code = grpc.StatusCode.UNAVAILABLE


class StoreUnavailable(RegistryUnavailable):
    """The registry does not reach Redis. A write may or may not have been made."""


class NotReplicated(StoreUnavailable):
    """The write was made, but too few replicas of Redis have it: a failover now may lose it.

    What may be repeated is repeated, since the same again is answered once there are enough replicas. Where this is
    raised for ``create_only`` or a write at an ``expected_revision``, do not repeat it: it would meet its own change.
    """

    @property
    def revision(self) -> int:
        """Revision of the change; 0 if the registry did not say."""
        return int(self.metadata.get("revision", "0"))


class IssuerUnavailable(RegistryUnavailable):
    """The registry cannot read the keys that would verify the token."""


class Overloaded(RegistryUnavailable):
    """The process that was asked has as much under way as it takes. Nothing was done."""


class ShuttingDown(RegistryUnavailable):
    """The process that was asked drains."""


class InternalError(RegistryError):
    """A bug of the registry; its log has the details."""

    default_code = grpc.StatusCode.INTERNAL


class NoEndpoint(RegistryError):
    """A cache knows no service that may be used; the message says what it knows instead."""

    default_code = grpc.StatusCode.NOT_FOUND


_BY_REASON: Final[Mapping[str, type[RegistryError]]] = {
    "INVALID_REQUEST": InvalidRequest,
    "SERVICE_NOT_FOUND": ServiceNotFound,
    "SERVICE_EXISTS": ServiceExists,
    "REVISION_MISMATCH": RevisionMismatch,
    "WRITE_CONFLICT": WriteConflict,
    "REVISION_NOT_REACHED": RevisionNotReached,
    "CURSOR_EXPIRED": CursorExpired,
    "WATCHER_TOO_SLOW": WatcherTooSlow,
    "STORE_UNAVAILABLE": StoreUnavailable,
    "NOT_REPLICATED": NotReplicated,
    "SHUTTING_DOWN": ShuttingDown,
    "OVERLOADED": Overloaded,
    "PROBING_DISABLED": ProbingDisabled,
    "UNAUTHENTICATED": Unauthenticated,
    "ISSUER_UNAVAILABLE": IssuerUnavailable,
    "PERMISSION_DENIED": PermissionDenied,
    "RATE_LIMITED": RateLimited,
    "LIMIT_EXCEEDED": LimitExceeded,
    "INTERNAL": InternalError,
}
# For reasons that this version does not know yet, and for what gRPC or a proxy says without any.
_BY_CODE: Final[Mapping[grpc.StatusCode, type[RegistryError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: ServiceNotFound,
    grpc.StatusCode.ALREADY_EXISTS: ServiceExists,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitExceeded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: RegistryUnavailable,
    grpc.StatusCode.INTERNAL: InternalError,
}
# The registry gives a reason with every error. Without one, these come from a connection that broke under the call
# (reset, killed server, proxy), which is the same as nobody answering.
_BROKEN: Final = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})
_CODES: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


def error_of_call(error: grpc.aio.AioRpcError) -> RegistryError:
    """Makes the error of this tree from what a call raised."""
    status = Status()
    for key, value in error.trailing_metadata():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:  # not the registry's: a proxy's, perhaps
                status = Status()
    return _error(error.code(), error.details() or "", status)


def error_of_status(status: Status) -> RegistryError:
    """Makes the error of this tree from a status in a batch's answer."""
    return _error(_CODES.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status)


def _error(code: grpc.StatusCode, message: str, status: Status) -> RegistryError:
    info, retry, bad = ErrorInfo(), RetryInfo(), BadRequest()
    for detail in status.details:
        for known in (info, retry, bad):
            if detail.Is(known.DESCRIPTOR):
                detail.Unpack(known)
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, RegistryError)
    if not info.reason and code in _BROKEN:
        kind = RegistryUnavailable
    return kind(
        message or code.name,
        code=code,
        reason=info.reason,
        metadata=info.metadata,
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9,
        violations=tuple(Violation(each.field, each.description) for each in bad.field_violations),
    )
