"""``HttpCall``: one HTTP request; ``Middleware``: routes, CORS, compression and sending, the same for all requests."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler as AiohttpHandler
from multidict import CIMultiDict

from registry_server.admission import Admission, CallScope, Endpoint
from registry_server.config import HttpSettings
from registry_server.errors import Unauthenticated
from registry_server.gateway.envelope import Envelope, failure_of
from registry_server.instrumentation.request_context import REQUEST_CONTEXT
from registry_server.instrumentation.tracing import Attributes
from registry_server.security.authenticator import Credentials
from registry_server.security.identity import UNCHECKED, current_identity
from registry_server.security.limits import Streams
from registry_server.security.permissions import Permission
from registry_server.security.tls import certificate_names

MAX_URL_BYTES: Final = 8_192
"""Maximum length of path and query."""
CHUNK_BYTES: Final = 64 << 10
"""Bytes that a client must read within the write timeout."""

_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
_CORS_METHODS: Final = "GET, HEAD, POST, PUT, DELETE"
_CORS_REQUEST_HEADERS: Final = (
    "Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Request-Id, Authorization, X-Api-Key"
)
_CORS_EXPOSED_HEADERS: Final = "Allow, ETag, Location, Retry-After, WWW-Authenticate, X-Request-Id"
_CORS_MAX_AGE_SECONDS: Final = "600"
_MIN_COMPRESSED_BYTES: Final = 1_024
"""Smaller answers hardly shrink and fit in one packet anyway."""
_NOT_GZIP: Final = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")

Handler: TypeAlias = Callable[[Any, "HttpCall"], Awaitable[web.StreamResponse]]
BoundHandler: TypeAlias = Callable[["HttpCall"], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """A row of the route table (``gateway/routes.py``)."""

    method: str
    path: str
    handler: Handler
    """Called with the object that serves the API, and the call."""
    permission: Permission
    """Required of callers; HEAD requires the same as GET."""
    limited: bool = True
    """Whether its requests count towards the limit on calls in flight."""
    streams: Streams | None = None
    """Kind of stream; ``None`` = no stream."""


class Middleware:
    """Wraps every handler as it is added to the router, and completes every answer.

    aiohttp's own middleware would add 8 µs to each request.
    """

    def __init__(self, envelope: Envelope, admission: Admission, settings: HttpSettings) -> None:
        self.envelope = envelope
        self.admission = admission
        self.max_body_bytes = settings.max_body_bytes
        self._write_timeout = settings.write_timeout_ms / 1000
        """Seconds within which a client must read 64 KiB."""
        self._any_origin = "*" in settings.cors_origins
        self._origins = frozenset(settings.cors_origins)

    def add_routes(self, router: web.UrlDispatcher, routes: Iterable[Route], api: Any) -> None:
        """Route the requests of the table to its handlers, and reject all others.

        Args:
            router: A router without routes.
            routes: The complete table.
            api: Object that the handlers belong to.
        """
        for route in routes:
            counters = self.admission.counters_of(route.path)
            endpoint = Endpoint(route.permission, counters, limited=route.limited, streams=route.streams)
            wrapped = self._wrap(partial(route.handler, api), route.path, endpoint)
            web.RouteDef(route.method, route.path, wrapped, {}).register(router)
        for resource in list(router.resources()):
            allowed = sorted(route.method for route in resource)
            if isinstance(resource, web.Resource):
                resource.add_route("*", self._reject(partial(self._reject_method, allowed), resource.canonical))
        router.add_route("*", "/{path:.*}", self._reject(_not_found, "OTHER"))

    def _reject(self, handler: BoundHandler, path: str) -> AiohttpHandler:
        """Wrap a handler that only rejects requests, which needs no credential."""
        return self._wrap(handler, path, Endpoint(None, self.admission.counters_of(path), limited=False))

    def _wrap(self, handler: BoundHandler, path: str, endpoint: Endpoint) -> AiohttpHandler:
        async def handle(request: web.Request) -> web.StreamResponse:
            response: web.StreamResponse = await HttpCall(self, endpoint, path, handler, request).run()
            return response

        return handle

    def add_headers(self, call: "HttpCall", headers: CIMultiDict[str]) -> None:
        """Add the headers of every answer; handlers that stream their answer call it themselves."""
        headers["X-Request-Id"] = call.request_id
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Server"] = "ossa-registry"  # hides the versions of aiohttp and Python
        headers["Vary"] = "Accept-Encoding"
        if not self._origins:
            return
        if not self._any_origin:
            headers["Vary"] = "Accept-Encoding, Origin"
        origin = call.request.headers.get("Origin")
        if origin is not None and (self._any_origin or origin in self._origins):
            headers["Access-Control-Allow-Origin"] = "*" if self._any_origin else origin
            headers["Access-Control-Expose-Headers"] = _CORS_EXPOSED_HEADERS

    async def send(self, call: "HttpCall", response: web.Response) -> None:
        """Send an answer that may exceed the network buffers, to a client that may never read it."""
        chunks = 1 + (response.content_length or 0) // CHUNK_BYTES
        with call.disconnecting():
            async with asyncio.timeout(self._write_timeout * chunks):
                await response.prepare(call.request)
                await response.write_eof()

    async def write(self, response: web.StreamResponse, text: bytes) -> None:
        """Write to a stream in chunks, each within the write timeout.

        Raises:
            TimeoutError: The client did not read in time.
            ConnectionError: The client left.
        """
        for start in range(0, len(text), CHUNK_BYTES):
            async with asyncio.timeout(self._write_timeout):
                await response.write(text[start : start + CHUNK_BYTES])

    async def _reject_method(self, allowed: Sequence[str], call: "HttpCall") -> web.Response:
        """Answer a request with a method that its path does not support."""
        if call.request.method != "OPTIONS":
            raise web.HTTPMethodNotAllowed(call.request.method, allowed)
        headers = {"Allow": ", ".join((*allowed, "OPTIONS"))}
        if self._origins and "Access-Control-Request-Method" in call.request.headers:
            headers |= {
                "Access-Control-Allow-Methods": _CORS_METHODS,
                "Access-Control-Allow-Headers": _CORS_REQUEST_HEADERS,
                "Access-Control-Max-Age": _CORS_MAX_AGE_SECONDS,
            }
        return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)


class HttpCall(CallScope):
    """One HTTP request."""

    transport = "http"
    log: ClassVar[Any] = structlog.get_logger(__name__)

    _status = 0

    def __init__(
        self, middleware: Middleware, endpoint: Endpoint, path: str, handler: BoundHandler, request: web.Request
    ) -> None:
        """Create the scope of a request to a path, given as template."""
        super().__init__(middleware.admission, endpoint)
        self.middleware, self.path, self.request = middleware, path, request
        self._handler = handler

    # Reading the request.

    def header(self, name: str) -> str | None:
        """Return a header."""
        return self.request.headers.get(name)

    @property
    def peer(self) -> str:
        """Address of the client with its port."""
        transport = self.request.transport
        name: Any = transport.get_extra_info("peername") if transport else None
        return f"{name[0]}:{name[1]}" if name else ""

    def address(self) -> str:
        """Return the address of the client."""
        return self.request.remote or ""

    def credentials(self) -> Credentials:
        """Return the credentials in the headers and on the connection.

        Raises:
            Unauthenticated: A header is repeated; a proxy in front may have verified the other value.
        """
        authorization, api_key = self._single_header("Authorization"), self._single_header("X-Api-Key")
        certificate = certificate_names(self.request.get_extra_info("peercert")) if self.request.secure else ()
        return Credentials(authorization, api_key, certificate)

    def _single_header(self, name: str) -> str:
        values = self.request.headers.getall(name, ())
        if len(values) > 1:
            raise Unauthenticated("send one credential, not two")
        return values[0] if values else ""

    # Handling the request.

    def _request_bytes(self) -> int:
        if not self.request.body_exists:
            return 0
        declared, limit = self.request.content_length, self.middleware.max_body_bytes
        return limit if declared is None else min(declared, limit)

    def _begin(self) -> None:
        REQUEST_CONTEXT.set(self)
        current_identity.set(UNCHECKED)
        if len(self.request.raw_path) > MAX_URL_BYTES:
            raise web.HTTPRequestURITooLong(text=f"the URL is longer than {MAX_URL_BYTES} bytes")

    async def _handle(self) -> web.StreamResponse:
        response: web.StreamResponse = await self._handler(self)
        if self.slot is not None and isinstance(response, web.Response):
            self.slot.hold_bytes(response.content_length or 0)
        return await self._finish(response)

    async def _fail(self, error: Exception) -> web.StreamResponse:
        if isinstance(error, ConnectionError):  # the client left; the answer is never sent
            return await self._finish(web.Response(status=HTTPStatus.BAD_REQUEST))
        return await self._finish(self.middleware.envelope.failure(failure_of(error), self.request_id))

    async def _finish(self, response: web.StreamResponse) -> web.StreamResponse:
        """Add common headers and compression, unless the answer was sent; send a large one with a timeout."""
        self._status = response.status
        self.timed = isinstance(response, web.Response)  # not an event stream
        self.result = f"{self._method('OTHER')} {response.status}"
        if response.prepared:
            return response
        self.middleware.add_headers(self, response.headers)
        if "Accept-Encoding" in self.request.headers:
            _compress(self.request, response)
        if isinstance(response, web.Response) and (response.content_length or 0) > CHUNK_BYTES:
            await self.middleware.send(self, response)
        return response

    @contextmanager
    def disconnecting(self) -> Iterator[None]:
        """Disconnect the client if it does not read in time, and ignore that it has left."""
        try:
            yield
        except TimeoutError:
            self.log.info("slow reader disconnected", request_id=self.request_id)
            if self.request.transport is not None:
                self.request.transport.abort()
        except ConnectionError:
            pass

    # Reporting the request.

    def _failure_level(self) -> int:
        if self._status < HTTPStatus.BAD_REQUEST:
            return 0
        return logging.INFO if self._status < HTTPStatus.INTERNAL_SERVER_ERROR else logging.WARNING

    def _result_fields(self) -> dict[str, Any]:
        # The path may contain arbitrary bytes.
        path = self.request.raw_path[:MAX_URL_BYTES].encode("ascii", "backslashreplace").decode()
        return {"method": self.request.method, "path": path, "status": self._status}

    def _span_start(self) -> tuple[str, Attributes]:
        method = self._method("_OTHER")
        return f"{method} {self.path}", {"http.request.method": method, "http.route": self.path}

    def _span_end(self) -> tuple[Attributes, bool]:
        return {"http.response.status_code": self._status}, self._status >= HTTPStatus.INTERNAL_SERVER_ERROR

    def _method(self, other: str) -> str:
        """Return the method, or ``other`` if it is unknown."""
        return self.request.method if self.request.method in _KNOWN_METHODS else other


async def _not_found(_: HttpCall) -> web.Response:
    raise web.HTTPNotFound


def _compress(request: web.Request, response: web.StreamResponse) -> None:
    # Not left to aiohttp, which prefers deflate and uses gzip even if the client sends "gzip;q=0".
    if not isinstance(response, web.Response) or (response.content_length or 0) < _MIN_COMPRESSED_BYTES:
        return
    accepted = request.headers["Accept-Encoding"].lower()
    if "gzip" in accepted and not _NOT_GZIP.search(accepted):
        response.enable_compression(web.ContentCoding.gzip)
