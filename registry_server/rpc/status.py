"""Errors as gRPC statuses with details."""

from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from ossa_common.violations import AND_MORE
from registry_server import errors
from registry_server.admission import disclosed, outcome_of

DOMAIN: Final = "registry.ossa"
DETAILS_KEY: Final = "grpc-status-details-bin"

# By default clients reject trailers above 8 KiB on the wire, where details are base64 and the message appears twice:
# percent-encoded (three bytes for each non-ASCII one) and in the details. These limits leave 200 bytes unused.
_MAX_MESSAGE_BYTES = 512
_MAX_VIOLATION_BYTES = 3_800
_VIOLATION_OVERHEAD_BYTES = 8


def status_of(error: Exception) -> Status:
    """Return an error as a ``google.rpc.Status`` with details."""
    shown = disclosed(error)
    details: list[BadRequest | ErrorInfo | RetryInfo] = [
        ErrorInfo(reason=shown.reason, domain=DOMAIN, metadata=shown.metadata)
    ]
    if isinstance(shown, errors.InvalidRequest):
        details.append(_bad_request(shown))
    if isinstance(shown, errors.RetryableError):
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(shown.retry_after * 1000))
        details.append(retry)
    status = Status(code=grpc.StatusCode[outcome_of(shown).code].value[0], message=_truncate(str(shown)))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


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
            details.field_violations.add(field=AND_MORE.field, description=AND_MORE.description)
            break
        details.field_violations.add(field=field)
    for violation, (_, description) in zip(details.field_violations, error.violations, strict=False):
        size = len(description.encode())
        if size <= room and not violation.description:
            violation.description = description
            room -= size
    return details


def _truncate(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= _MAX_MESSAGE_BYTES:
        return message
    return encoded[: _MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
