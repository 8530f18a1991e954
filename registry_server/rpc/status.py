"""The one table from errors to gRPC status."""

from collections.abc import Mapping
from typing import Final

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from registry_server import errors

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
    errors.ShuttingDown: grpc.StatusCode.UNAVAILABLE,
    errors.ProbingDisabled: grpc.StatusCode.UNIMPLEMENTED,
}

# Details travel in a trailer, in base64; clients refuse more than 8 KiB of those by default.
_MOST_DETAIL_BYTES = 4_000
_MOST_FIELD_BYTES = 5_000

log = structlog.get_logger(__name__)


def status_of(error: Exception) -> Status:
    """Turns an error into a ``google.rpc.Status`` with its details.

    An error that is not in the table is a bug: it is logged in full, and the client is told nothing of it.
    """
    if not isinstance(error, errors.RegistryError) or type(error) not in CODES:
        log.error("unexpected error", exc_info=error)
        internal = ErrorInfo(reason=errors.RegistryError.reason, domain=DOMAIN)
        return _status(grpc.StatusCode.INTERNAL, "internal error; see the server's log", [internal])
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if isinstance(error, errors.InvalidRequest):
        details.append(_bad_request(error))
    if isinstance(error, (errors.StoreUnavailable, errors.ShuttingDown)):
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after * 1000))
        details.append(retry)
    return _status(CODES[type(error)], str(error), details)


def trailers_of(status: Status) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries a status with details."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def code_of(status: Status) -> grpc.StatusCode:
    """The status's code as gRPC wants it."""
    return _BY_NUMBER[status.code]


_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}


def _bad_request(error: errors.InvalidRequest) -> BadRequest:
    """Names every bad field, as far as a trailer holds them; what is wrong with each, as far as there is room."""
    details = BadRequest()
    size = 0
    for field, description in error.violations:
        size += len(field.encode()) + 8
        if size > _MOST_FIELD_BYTES:
            details.field_violations.add(field="...", description="and more")
            break
        if size + len(description.encode()) <= _MOST_DETAIL_BYTES:
            size += len(description.encode())
        else:
            description = ""  # noqa: PLW2901 - the name alone still helps
        details.field_violations.add(field=field, description=description)
    return details


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> Status:
    status = Status(code=code.value[0], message=_short(message))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _short(message: str, limit: int = 512) -> str:
    return message if len(message) <= limit else message[: limit - 3] + "..."
