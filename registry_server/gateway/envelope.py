"""The JSON envelope of answers, and errors as HTTP answers."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from aiohttp import web

from ossa_common.violations import Violation
from registry_server import __version__, errors
from registry_server.admission import disclosed, outcome_of
from registry_server.catalog import Compressed
from registry_server.gateway.answers import Answer
from registry_server.gateway.compression import end_gzip
from registry_server.runtime.clock import Clock

HTTP_CODES: Final[Mapping[int, str]] = {
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.METHOD_NOT_ALLOWED: "METHOD_NOT_ALLOWED",
    HTTPStatus.REQUEST_TIMEOUT: "REQUEST_TIMEOUT",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "BODY_TOO_LARGE",
    HTTPStatus.REQUEST_URI_TOO_LONG: "URL_TOO_LONG",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UNSUPPORTED_MEDIA_TYPE",
}
"""``error.code`` of requests that are rejected at the HTTP level."""

_MAX_SUMMARISED_VIOLATIONS = 3
"""Violations repeated in the error message; ``details`` lists all of them."""

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode
# Errors may quote invalid Unicode sent by a client, which only ASCII escapes can represent.
_encode_ascii = json.JSONEncoder(separators=(",", ":")).encode


class Failure(NamedTuple):
    """An error as an HTTP answer."""

    status: int
    code: str
    message: str
    details: Mapping[str, Any]
    headers: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """Return the member ``error`` of the envelope."""
        return {"code": self.code, "message": self.message, "details": self.details}


def success_beginning(data: bytes) -> bytes:
    """Return the part of an answer that depends on its result alone, which may be kept compressed."""
    return b'{"success":true,"data":%b' % data


def encode_json(document: Any) -> bytes:
    """Return compact UTF-8 JSON of plain values."""
    return _encode(document).encode()


@lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    """Return a second since the epoch in ISO 8601; cached, since thousands of answers share one."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Envelope:
    """Wraps answers: ``{"success":true,"data":...,"meta":...}`` or ``{"success":false,"error":...,"meta":...}``."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @property
    def now(self) -> str:
        """Current time in ISO 8601 with milliseconds."""
        seconds, rest = divmod(self._clock(), 1_000_000_000)
        return f"{_second(seconds)}.{rest // 1_000_000:03}Z"

    def success(
        self, data: bytes, request_id: str, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer to a successful request.

        Args:
            data: JSON of the result.
            request_id: Request id, without characters that JSON escapes.
            status: HTTP status.
            headers: Additional headers.
        """
        return Answer(success_beginning(data) + self._meta(request_id), status, headers)

    def compressed_success(self, beginning: Compressed, request_id: str) -> Answer:
        """Return the answer to a successful request, given the compressed ``success_beginning`` of its result."""
        body = end_gzip(beginning, self._meta(request_id))
        return Answer(body, headers={"Content-Encoding": "gzip"})

    def failure(self, failure: Failure, request_id: str) -> Answer:
        """Return the answer to a failed request."""
        error = _encode_ascii(failure.document()).encode()
        body = b"".join((b'{"success":false,"error":', error, self._meta(request_id)))
        return Answer(body, failure.status, failure.headers)

    def _meta(self, request_id: str) -> bytes:
        meta = f',"meta":{{"timestamp":"{self.now}","version":"{__version__}","requestId":"{request_id}"}}}}'
        return meta.encode()


def failure_of(error: Exception) -> Failure:
    """Return the answer to an error."""
    if isinstance(error, web.HTTPException) and error.status in HTTP_CODES:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return Failure(error.status, HTTP_CODES[error.status], _http_error_message(error), {}, headers)
    shown = disclosed(error)
    details: dict[str, Any] = dict(shown.metadata)
    message = str(shown)
    if isinstance(shown, errors.InvalidRequest):
        details["violations"] = [violation._asdict() for violation in shown.violations]
        message = _summary(shown.violations)
    headers = {}
    if isinstance(shown, errors.RetryableError):
        headers["Retry-After"] = str(math.ceil(shown.retry_after))
    if isinstance(shown, errors.Unauthenticated):  # required by RFC 9110, 11.6.1
        headers["WWW-Authenticate"] = 'Bearer realm="ossa-registry"'
    return Failure(outcome_of(shown).status, shown.reason, message, details, headers)


def _http_error_message(error: web.HTTPException) -> str:
    match error:
        case web.HTTPMethodNotAllowed():
            return f"method not allowed; this path supports {', '.join(sorted(error.allowed_methods))}"
        case _:
            return error.text or error.reason


def _summary(violations: tuple[Violation, ...]) -> str:
    first = violations[:_MAX_SUMMARISED_VIOLATIONS]
    summary = "; ".join(f"{field}: {description}" for field, description in first)
    omitted = len(violations) - len(first)
    return f"{summary}; and {omitted} more" if omitted else summary
