"""What is done for every request: its id, limits, errors, CORS, compression and a line in the log."""

import logging
import random
import re
import time
from collections.abc import Collection
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from registry_server.gateway.envelope import Envelope, failure_of

LONGEST_URL: Final = 8_192
"""Most bytes of path and query."""
REQUEST_ID: Final = web.RequestKey("request_id", str)

# What a log, a shell and JSON take as it stands; anything else a client sends as its id is replaced by one of ours.
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS: Final = "GET, HEAD, POST, PUT, DELETE"
_REQUEST_HEADERS: Final = "Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Request-Id, Authorization"
_EXPOSED_HEADERS: Final = "Allow, ETag, Location, Retry-After, X-Request-Id"
_PREFLIGHT_SECONDS: Final = "600"
_LEAST_COMPRESSED: Final = 1_024
"""Bytes: less than this becomes hardly smaller, and fits one packet anyway."""
_NOT_GZIP: Final = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")


class Middleware:
    """Stands around every handler."""

    def __init__(self, envelope: Envelope, cors_origins: Collection[str]) -> None:
        self._envelope = envelope
        self._any_origin = "*" in cors_origins
        self._origins = frozenset(cors_origins)
        # Bound once: the lazy logger of a module is bound anew by each call, which takes longer than to find out that
        # nobody wants the line.
        self._log = structlog.get_logger(__name__).bind()

    def headers(self, request: web.Request) -> dict[str, str]:
        """The headers of every answer; handlers that begin their answer themselves take them from here."""
        headers = {"X-Request-Id": request[REQUEST_ID], "X-Content-Type-Options": "nosniff"}
        if not self._origins:
            return headers
        if not self._any_origin:
            headers["Vary"] = "Origin"
        origin = request.headers.get("Origin")
        if origin is not None and (self._any_origin or origin in self._origins):
            headers["Access-Control-Allow-Origin"] = "*" if self._any_origin else origin
            headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
        return headers

    @web.middleware
    async def around(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Is the middleware for ``web.Application``."""
        began = time.perf_counter()
        given = request.headers.get("X-Request-Id", "")
        request_id = given if given and _REQUEST_ID.fullmatch(given) else _new_id()
        request[REQUEST_ID] = request_id
        try:
            response = await self._answer(request, handler)
        except ConnectionError:  # the client has gone: nobody is there to be told
            response = web.Response(status=HTTPStatus.BAD_REQUEST)
        except Exception as error:  # noqa: BLE001 - the one place that turns errors into answers
            response = self._envelope.failure(failure_of(error, request_id), request_id)
        if not response.prepared:
            response.headers.update(self.headers(request))
            if isinstance(response, web.Response):
                _compress(request, response)
        self._tell(request, response.status, began)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if len(request.raw_path) > LONGEST_URL:
            raise web.HTTPRequestURITooLong(text=f"the URL is longer than {LONGEST_URL} bytes")
        if request.method == "OPTIONS":
            return self._options(request)
        return await handler(request)

    def _options(self, request: web.Request) -> web.Response:
        problem = request.match_info.http_exception
        if not isinstance(problem, web.HTTPMethodNotAllowed):
            raise problem or web.HTTPNotFound
        allowed = ", ".join(sorted({*problem.allowed_methods, "OPTIONS"}))
        headers = {"Allow": allowed}
        if self._origins and "Access-Control-Request-Method" in request.headers:
            headers |= {
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _REQUEST_HEADERS,
                "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
            }
        return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)

    def _tell(self, request: web.Request, status: int, began: float) -> None:
        """Logs a request; a read that succeeds for who asks for it: a busy registry has thousands of them a second."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            level = logging.WARNING
        elif status >= HTTPStatus.BAD_REQUEST or request.method not in _READING:
            level = logging.INFO
        else:
            level = logging.DEBUG
        if self._log.is_enabled_for(level):
            self._log.log(
                level,
                "request",
                method=request.method,
                path=request.raw_path[:LONGEST_URL],
                status=status,
                milliseconds=round((time.perf_counter() - began) * 1000, 3),
                request_id=request[REQUEST_ID],
            )


def _new_id() -> str:
    # It tells requests apart and guards nothing, so it costs no system call.
    return f"{random.getrandbits(128):032x}"


def _compress(request: web.Request, response: web.Response) -> None:
    # Not aiohttp's own choice: it takes deflate first, and "gzip;q=0" for a yes.
    body = response.body
    if not isinstance(body, bytes) or len(body) < _LEAST_COMPRESSED:
        return
    headers = response.headers
    headers["Vary"] = f"{headers['Vary']}, Accept-Encoding" if "Vary" in headers else "Accept-Encoding"
    accepted = request.headers.get("Accept-Encoding", "").lower()
    if "gzip" in accepted and not _NOT_GZIP.search(accepted):
        response.enable_compression(web.ContentCoding.gzip)
