"""The errors of the SDK, as one tree.

::

    RegistryError                  root; has ``code``, ``reason``, ``metadata`` and ``retry_after``
    ├── InvalidRequest             the request violates the contract; carries every violation
    ├── ServiceNotFound
    ├── ServiceExists
    ├── RevisionMismatch           a precondition on the revision does not hold
    ├── InstanceSuperseded         another instance has taken the name over
    ├── WriteConflict              concurrent writers won every attempt
    ├── CursorExpired              a watch cannot resume without a gap
    ├── WatcherTooSlow             the reader of a watch fell behind
    ├── ProbingDisabled            this server does not probe services
    ├── Unauthenticated            the token is missing or was rejected
    ├── PermissionDenied           the token does not permit this
    ├── LimitExceeded              a message is too large, or a quota is used up
    │   └── RateLimited            too many calls; nothing was written
    ├── DeadlineExceeded           no response in time
    │   └── RevisionNotReached     the process does not hold the requested revision yet
    ├── RegistryUnavailable        no registry process responds
    │   ├── StoreUnavailable       the registry cannot reach Redis
    │   │   └── NotReplicated      the write was committed, but too few Redis replicas hold it
    │   ├── IssuerUnavailable      the registry cannot fetch the keys that verify the token
    │   ├── Overloaded             the process has too many requests in flight; nothing was written
    │   └── ShuttingDown           the process is draining
    ├── InternalError              a bug in the registry; its log has the details
    └── NoEndpoint                 ``ServiceCache.resolve`` found no usable service; no call was made
        └── NoEndpointInTime       ``ServiceCache.wait_for`` found none before its timeout; also a ``TimeoutError``

A gRPC error carries a canonical code and, if it comes from the registry, a ``google.rpc.ErrorInfo`` whose reason is
more specific. ``_BY_REASON`` and ``_BY_CODE`` map both to these classes.
"""

import re
from collections.abc import Mapping
from typing import ClassVar, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from ossa_common.violations import Violation

_DETAILS_KEY: Final = "grpc-status-details-bin"


class RegistryError(Exception):
    """Base class of all errors of the SDK.

    Attributes:
        code: Canonical gRPC code.
        reason: The registry's reason in UPPER_SNAKE case, such as ``SERVICE_NOT_FOUND``; empty if the error was not
            created by the registry.
        metadata: Details of the error, such as ``name``; keys in lowerCamelCase.
        retry_after: Seconds that the registry requests before the next attempt; 0 if it does not request any.
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
    """The request violates the contract. Do not retry it unchanged."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT

    @property
    def violations(self) -> tuple[Violation, ...]:
        """All invalid fields."""
        return self._violations


class ServiceNotFound(RegistryError):
    """No service is registered under the name in ``metadata["name"]``."""

    default_code = grpc.StatusCode.NOT_FOUND


class ServiceExists(RegistryError):
    """The name is registered already, and the call had ``create_only`` set."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class RevisionMismatch(RegistryError):
    """The service has changed since it was read: read it again, then decide and write again."""

    default_code = grpc.StatusCode.ABORTED

    @property
    def actual_revision(self) -> int:
        """Current revision of the service; 0 if the registry did not report it."""
        return int(self.metadata.get("actualRevision", "0"))


class InstanceSuperseded(RegistryError):
    """Another instance has taken over the name in ``metadata["name"]``; nothing was changed. Do not retry."""

    default_code = grpc.StatusCode.ABORTED


class WriteConflict(RegistryError):
    """Concurrent writers won every attempt; nothing was written."""

    default_code = grpc.StatusCode.ABORTED


class CursorExpired(RegistryError):
    """The registry no longer holds all changes after this cursor: start again with a snapshot."""

    default_code = grpc.StatusCode.OUT_OF_RANGE


class WatcherTooSlow(RegistryError):
    """The reader of a watch fell behind. ``Watch`` resumes automatically and does not raise this error."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class ProbingDisabled(RegistryError):
    """This server does not probe services: report their status instead."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class Unauthenticated(RegistryError):
    """The token is missing, or the registry rejected it."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(RegistryError):
    """The token does not permit this call."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class LimitExceeded(RegistryError):
    """A message exceeds the size limit of the server, or a quota is used up."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class RateLimited(LimitExceeded):
    """This client exceeds its rate limit. Nothing was written; calls are retried after ``retry_after`` seconds."""


class DeadlineExceeded(RegistryError):
    """No response arrived before the deadline. A write may or may not have been committed."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class RevisionNotReached(DeadlineExceeded):
    """The registry process did not reach the requested revision before the deadline."""


class RegistryUnavailable(RegistryError):
    """No registry process responds. A write may or may not have been committed."""

    default_code = grpc.StatusCode.UNAVAILABLE


class StoreUnavailable(RegistryUnavailable):
    """The registry cannot reach Redis. A write may or may not have been committed."""


class NotReplicated(StoreUnavailable):
    """The write was committed, but too few Redis replicas hold it: a Redis failover now may lose it.

    Repeatable calls are retried: an identical write succeeds once there are enough replicas. Do not retry a write with
    ``create_only`` or ``expected_revision`` after this error: it would conflict with its own first attempt.
    """

    @property
    def revision(self) -> int:
        """Revision of the committed change; 0 if the registry did not report it."""
        return int(self.metadata.get("revision", "0"))


class IssuerUnavailable(RegistryUnavailable):
    """The registry cannot fetch the issuer's keys, which verify the token."""


class Overloaded(RegistryUnavailable):
    """The registry process has reached its limit of requests in flight. Nothing was written."""


class ShuttingDown(RegistryUnavailable):
    """The registry process is draining before it exits."""


class InternalError(RegistryError):
    """A bug in the registry; its log has the details."""

    default_code = grpc.StatusCode.INTERNAL


class NoEndpoint(RegistryError):
    """A cache holds no usable service; the message lists the unusable matches."""

    default_code = grpc.StatusCode.NOT_FOUND


class NoEndpointInTime(NoEndpoint, TimeoutError):
    """``ServiceCache.wait_for`` found no usable service before its timeout."""


_BY_REASON: Final[Mapping[str, type[RegistryError]]] = {
    re.sub(r"\B([A-Z])", r"_\1", name).upper(): kind
    for name, kind in list(globals().items())
    if isinstance(kind, type) and issubclass(kind, RegistryError)
}
"""Each class has the name of its reason: the reason of ``ServiceNotFound`` is ``SERVICE_NOT_FOUND``.

``InternalError`` is found by its code; its reason is ``INTERNAL``.
"""
_GENERAL: Final = (InvalidRequest, ServiceNotFound, ServiceExists, Unauthenticated, PermissionDenied, LimitExceeded)
_BY_CODE: Final[Mapping[grpc.StatusCode, type[RegistryError]]] = {
    kind.default_code: kind for kind in (*_GENERAL, DeadlineExceeded, RegistryUnavailable, InternalError)
}
"""For reasons without a class of their own, and for errors of gRPC or a proxy, which have no reason."""
# Every error of the registry has a reason. Without one, these codes mean that the connection broke during the call
# (reset, killed server, proxy).
_BROKEN_CONNECTION_CODES: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED}
)
_CODE_BY_NUMBER: Final[Mapping[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


def error_from_rpc(error: grpc.aio.AioRpcError) -> RegistryError:
    """Convert an exception of gRPC into an error of this module."""
    status = Status()
    for key, value in error.trailing_metadata():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                status.ParseFromString(value)
            except DecodeError:  # not created by the registry; perhaps by a proxy
                status = Status()
    return _build_error(error.code(), error.details() or "", status)


def error_from_status(status: Status) -> RegistryError:
    """Convert a status in a batch response into an error of this module."""
    return _build_error(_CODE_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN), status.message, status)


def _build_error(code: grpc.StatusCode, message: str, status: Status) -> RegistryError:
    info, retry, bad = ErrorInfo(), RetryInfo(), BadRequest()
    for detail in status.details:
        for known in (info, retry, bad):
            if detail.Is(known.DESCRIPTOR):
                detail.Unpack(known)
    kind = _BY_REASON.get(info.reason) or _BY_CODE.get(code, RegistryError)
    if not info.reason and code in _BROKEN_CONNECTION_CODES:
        kind = RegistryUnavailable
    return kind(
        message or code.name,
        code=code,
        reason=info.reason,
        metadata=info.metadata,
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9,
        violations=tuple(Violation(each.field, each.description) for each in bad.field_violations),
    )
