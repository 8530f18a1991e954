"""The table that maps errors to gRPC status codes, with their details."""

from collections.abc import Mapping
from typing import Final, NoReturn

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from registry_server import errors
from registry_server.rpc.codec import Context

DOMAIN: Final = "registry.ossa"
DETAILS_KEY: Final = "grpc-status-details-bin"

CODES: Final[Mapping[type[errors.RegistryError], grpc.StatusCode]] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ServiceNotFound: grpc.StatusCode.NOT_FOUND,
    errors.ServiceExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.RevisionMismatch: grpc.StatusCode.ABORTED,
    errors.WriteConflict: grpc.StatusCode.ABORTED,
    errors.RevisionNotReached: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.CursorExpired: grpc.StatusCode.OUT_OF_RANGE,
    errors.WatcherTooSlow: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoreUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.NotReplicated: grpc.StatusCode.UNAVAILABLE,
    errors.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    errors.Overloaded: grpc.StatusCode.UNAVAILABLE,
    errors.ProbingDisabled: grpc.StatusCode.UNIMPLEMENTED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.IssuerUnavailable: grpc.StatusCode.UNAVAILABLE,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

# By default clients reject trailers above 8 KiB on the wire, where details are base64 and the message appears twice:
# percent-encoded (three bytes for each non-ASCII one) and in the details. These limits leave 200 bytes unused.
_MAX_MESSAGE_BYTES = 512
_MAX_VIOLATION_BYTES = 3_800
_VIOLATION_OVERHEAD_BYTES = 8

log = structlog.get_logger(__name__)


def status_of(error: Exception) -> Status:
    """Return an error as a ``google.rpc.Status`` with details.

    An error that is not in the table is a bug: it is logged in full, and the client learns nothing about it.
    """
    if not isinstance(error, errors.RegistryError) or type(error) not in CODES:
        log.error("unexpected error", exc_info=error)
        internal = ErrorInfo(reason=errors.RegistryError.reason, domain=DOMAIN)
        return _status(grpc.StatusCode.INTERNAL, "internal error; see the server's log", [internal])
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if isinstance(error, errors.InvalidRequest):
        details.append(_bad_request(error))
    if isinstance(error, errors.RetryableError):
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(retry)
    return _status(CODES[type(error)], str(error), details)


async def abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status of an error."""
    status = status_of(error)
    await context.abort(code_of(status), status.message, trailers_of(status))


def trailers_of(status: Status) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata that carries a status with details."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def code_of(status: Status) -> grpc.StatusCode:
    """Return the code of a status as a ``grpc.StatusCode``."""
    return _BY_NUMBER[status.code]


_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


def _bad_request(error: errors.InvalidRequest) -> BadRequest:
    """Return the violations that fit in a trailer; their descriptions are included while there is room."""
    details = BadRequest()
    room = _MAX_VIOLATION_BYTES
    for field, _ in error.violations:
        room -= len(field.encode()) + _VIOLATION_OVERHEAD_BYTES
        if room < 0:
            details.field_violations.add(field="...", description="and more")
            break
        details.field_violations.add(field=field)
    for violation, (_, description) in zip(details.field_violations, error.violations, strict=False):
        size = len(description.encode())
        if size <= room and not violation.description:
            violation.description = description
            room -= size
    return details


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> Status:
    status = Status(code=code.value[0], message=_truncate(message))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _truncate(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return message
    return encoded[: _MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
