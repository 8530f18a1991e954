"""The JSON envelope of answers, and the table that maps errors to HTTP status codes."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import structlog
from aiohttp import web

from ossa_common.violations import Violation
from registry_server import __version__, errors
from registry_server.runtime.clock import Clock

STATUSES: Final[Mapping[type[errors.RegistryError], HTTPStatus]] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.ServiceNotFound: HTTPStatus.NOT_FOUND,
    errors.ServiceExists: HTTPStatus.CONFLICT,
    errors.RevisionMismatch: HTTPStatus.PRECONDITION_FAILED,
    errors.WriteConflict: HTTPStatus.CONFLICT,
    errors.RevisionNotReached: HTTPStatus.GATEWAY_TIMEOUT,
    errors.CursorExpired: HTTPStatus.GONE,
    errors.WatcherTooSlow: HTTPStatus.TOO_MANY_REQUESTS,
    errors.StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NotReplicated: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ShuttingDown: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ProbingDisabled: HTTPStatus.NOT_IMPLEMENTED,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.IssuerUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.PermissionDenied: HTTPStatus.FORBIDDEN,
    errors.RateLimited: HTTPStatus.TOO_MANY_REQUESTS,
    errors.LimitExceeded: HTTPStatus.TOO_MANY_REQUESTS,
}

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

_JSON = "application/json"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")).encode
# Errors may quote invalid Unicode sent by a client, which only ASCII escapes can represent.
_encode_ascii = json.JSONEncoder(separators=(",", ":")).encode

log = structlog.get_logger(__name__)


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
    ) -> web.Response:
        """Return the answer to a successful request.

        Args:
            data: JSON of the result.
            request_id: Request id, without characters that JSON escapes.
            status: HTTP status.
            headers: Additional headers.
        """
        body = b"".join((b'{"success":true,"data":', data, self._meta(request_id)))
        return web.Response(body=body, status=status, headers=headers, content_type=_JSON)

    def failure(self, failure: Failure, request_id: str) -> web.Response:
        """Return the answer to a failed request."""
        error = _encode_ascii(failure.document()).encode()
        body = b"".join((b'{"success":false,"error":', error, self._meta(request_id)))
        return web.Response(body=body, status=failure.status, headers=failure.headers, content_type=_JSON)

    def _meta(self, request_id: str) -> bytes:
        meta = f',"meta":{{"timestamp":"{self.now}","version":"{__version__}","requestId":"{request_id}"}}}}'
        return meta.encode()


def failure_of(error: Exception, request_id: str) -> Failure:
    """Return the answer to an error.

    An error that is in neither table is a bug: it is logged in full, and the client learns nothing about it.
    """
    if isinstance(error, web.HTTPException) and error.status in HTTP_CODES:
        headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return Failure(error.status, HTTP_CODES[error.status], _http_error_message(error), {}, headers)
    if not isinstance(error, errors.RegistryError) or type(error) not in STATUSES:
        log.error("unexpected error", request_id=request_id, exc_info=error)
        status, code = HTTPStatus.INTERNAL_SERVER_ERROR, errors.RegistryError.reason
        return Failure(status, code, "internal error; see the server's log", {}, {})
    details: dict[str, Any] = dict(error.metadata)
    message = str(error)
    if isinstance(error, errors.InvalidRequest):
        details["violations"] = [violation._asdict() for violation in error.violations]
        message = _summary(error.violations)
    headers = {}
    if isinstance(error, errors.RetryableError):
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if isinstance(error, errors.Unauthenticated):  # required by RFC 9110, 11.6.1
        headers["WWW-Authenticate"] = 'Bearer realm="ossa-registry"'
    return Failure(STATUSES[type(error)], error.reason, message, details, headers)


def _http_error_message(error: web.HTTPException) -> str:
    match error:
        case web.HTTPMethodNotAllowed():
            return f"method not allowed; this path supports {', '.join(sorted(error.allowed_methods))}"
        case web.HTTPNotFound():
            return "there is no resource at this path"
        case _:
            return error.text or error.reason


def _summary(violations: tuple[Violation, ...]) -> str:
    first = violations[:_MAX_SUMMARISED_VIOLATIONS]
    summary = "; ".join(f"{field}: {description}" for field, description in first)
    omitted = len(violations) - len(first)
    return f"{summary}; and {omitted} more" if omitted else summary
