"""Middleware of every request: request id, admission, errors, CORS, compression and request log."""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from multidict import CIMultiDict

from registry_server.config import LogSettings
from registry_server.errors import Unauthenticated
from registry_server.gateway.envelope import Envelope, failure_of
from registry_server.instrumentation.counters import Histogram
from registry_server.instrumentation.request_context import REQUEST_CONTEXT, RequestContext
from registry_server.instrumentation.tracing import Attributes, Tracer
from registry_server.security.authenticator import Credentials
from registry_server.security.guard import Guard, Peer
from registry_server.security.identity import UNCHECKED, Identity, caller_fields, current_identity
from registry_server.security.limits import CallSlot
from registry_server.security.permissions import API, ROUTES, Permission
from registry_server.security.tls import certificate_names

MAX_URL_BYTES: Final = 8_192
"""Maximum length of path and query."""
CHUNK_BYTES: Final = 64 << 10
"""Bytes that a client must read within the write timeout."""
REQUEST_ID: Final = web.RequestKey("request_id", str)
IDENTITY: Final = web.RequestKey("identity", Identity)

_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
_CORS_METHODS: Final = "GET, HEAD, POST, PUT, DELETE"
_CORS_REQUEST_HEADERS: Final = (
    "Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Request-Id, Authorization, X-Api-Key"
)
_CORS_EXPOSED_HEADERS: Final = "Allow, ETag, Location, Retry-After, WWW-Authenticate, X-Request-Id"
_PATHS_WITHOUT_CALL_LIMIT: Final = (f"{API}/events", "/health", "/health/live", "/metrics")
"""Paths without the limit on calls: event streams count as watches, and monitoring must work under overload."""
_CORS_MAX_AGE_SECONDS: Final = "600"
_MIN_COMPRESSED_BYTES: Final = 1_024
"""Smaller answers hardly shrink and fit in one packet anyway."""
_NO_CREDENTIALS: Final = Credentials()
_NOT_GZIP: Final = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")


class Route:
    """Counters of the requests for one path, or for all unknown paths."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        """By method and status; unknown methods are ``OTHER``."""
        self.seconds = Histogram()
        """Durations, without event streams, whose length their client decides."""

    def count_request(self, method: str, response: web.StreamResponse, seconds: float) -> None:
        """Count an answered request."""
        self.answers[method if method in _KNOWN_METHODS else "OTHER", response.status] += 1
        if isinstance(response, web.Response):  # not an event stream
            self.seconds.observe(seconds)


class Middleware:
    """Wraps every handler as it is added to the router.

    aiohttp's own middleware would add 8 µs to each request.
    """

    def __init__(
        self,
        envelope: Envelope,
        guard: Guard,
        cors_origins: Collection[str],
        logs: LogSettings,
        *,
        write_timeout: float,
        max_body_bytes: int,
        tracer: Tracer | None = None,
    ) -> None:
        """Create the middleware.

        Args:
            envelope: Builds error answers.
            guard: Admits every request.
            cors_origins: Origins whose pages may call, or ``*``.
            logs: Which requests to log.
            write_timeout: Seconds within which a client must read 64 KiB.
            max_body_bytes: Maximum size of a body.
            tracer: Records a span for each request; ``None`` = no tracing.
        """
        self._tracer = tracer
        self._envelope = envelope
        self._guard = guard
        self._write_timeout = write_timeout
        self._max_body_bytes = max_body_bytes
        self._any_origin = "*" in cors_origins
        self._origins = frozenset(cors_origins)
        self._routes: dict[str, Route] = {}
        self._log = structlog.get_logger(__name__).bind()
        self._logs_all = logs.requests == "all"
        self._logs_errors = logs.requests != "off"

    @property
    def routes(self) -> Mapping[str, Route]:
        """Counters by path template; ``OTHER`` counts requests for unknown paths."""
        return self._routes

    def add_routes(self, router: web.UrlDispatcher, routes: Iterable[web.RouteDef]) -> None:
        """Route the requests of the table to its handlers, and reject all others.

        Args:
            router: A router without routes.
            routes: The complete table.
        """
        for route in routes:
            wrapped = self._wrap(route.handler, route.path, ROUTES[route.method, route.path])
            web.RouteDef(route.method, route.path, wrapped, route.kwargs).register(router)
        for resource in list(router.resources()):
            allowed = sorted(route.method for route in resource)
            if isinstance(resource, web.Resource):
                resource.add_route("*", self._wrap(self._method_not_allowed(allowed), resource.canonical))
        router.add_route("*", "/{path:.*}", self._wrap(_not_found, "OTHER"))

    def add_headers(self, request: web.Request, headers: CIMultiDict[str]) -> None:
        """Add the headers of every answer; handlers that stream their answer call it themselves."""
        headers["X-Request-Id"] = request[REQUEST_ID]
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Server"] = "ossa-registry"  # hides the versions of aiohttp and Python
        headers["Vary"] = "Accept-Encoding"
        if not self._origins:
            return
        if not self._any_origin:
            headers["Vary"] = "Accept-Encoding, Origin"
        origin = request.headers.get("Origin")
        if origin is not None and (self._any_origin or origin in self._origins):
            headers["Access-Control-Allow-Origin"] = "*" if self._any_origin else origin
            headers["Access-Control-Expose-Headers"] = _CORS_EXPOSED_HEADERS

    def _wrap(self, handler: Any, path: str, permission: Permission | None = None) -> Handler:
        """Wrap a handler; one without a permission only rejects requests, which needs no credential."""
        route = self._routes.setdefault(path, Route())
        counted = permission is not None and path not in _PATHS_WITHOUT_CALL_LIMIT

        async def handle(request: web.Request) -> web.StreamResponse:
            started = time.perf_counter()
            context = RequestContext("http", request.headers.get, partial(_peer, request))
            REQUEST_CONTEXT.set(context)  # the next request on this connection replaces it
            current_identity.set(UNCHECKED)
            request[REQUEST_ID] = context.request_id
            with CallSlot(self._guard.in_flight) as slot:
                response = await self._answer(request, handler, permission, slot if counted else None)
                if not response.prepared:
                    await self._finish(request, response)
            seconds = time.perf_counter() - started
            route.count_request(request.method, response, seconds)
            if self._logs_all or (self._logs_errors and response.status >= HTTPStatus.BAD_REQUEST):
                self._log_request(request, response.status, seconds, context)
            return response

        return handle if self._tracer is None else _with_span(handle, path, self._tracer)

    async def _answer(
        self, request: web.Request, handler: Any, permission: Permission | None, slot: CallSlot | None
    ) -> web.StreamResponse:
        """Return the handler's answer, or the error that rejects the request."""
        request_id = request[REQUEST_ID]
        try:
            if len(request.raw_path) > MAX_URL_BYTES:
                raise web.HTTPRequestURITooLong(text=f"the URL is longer than {MAX_URL_BYTES} bytes")  # noqa: TRY301
            if slot is not None:
                slot.acquire(self._body_bytes(request))
            if permission is not None:
                identity = await self._guard.admit(self.credentials(request), permission, peer_of(request))
                request[IDENTITY] = identity
                current_identity.set(identity)
            response: web.StreamResponse = await handler(request)
            if slot is not None and isinstance(response, web.Response):
                slot.hold_bytes(response.content_length or 0)
        except ConnectionError:  # the client left; the answer is never sent
            return web.Response(status=HTTPStatus.BAD_REQUEST)
        except Exception as error:  # noqa: BLE001 - the one place that maps errors to answers
            return self._envelope.failure(failure_of(error, request_id), request_id)
        return response

    def _body_bytes(self, request: web.Request) -> int:
        """Return the maximum number of bytes to read from a request's body."""
        if not request.body_exists:
            return 0
        declared = request.content_length
        return self._max_body_bytes if declared is None else min(declared, self._max_body_bytes)

    async def _finish(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add common headers and compression; send a large answer with a timeout."""
        self.add_headers(request, response.headers)
        if "Accept-Encoding" in request.headers:
            _compress(request, response)
        if isinstance(response, web.Response) and (response.content_length or 0) > CHUNK_BYTES:
            await self._send(request, response)

    def credentials(self, request: web.Request) -> Credentials:
        """Return the credentials of a request.

        Raises:
            Unauthenticated: A header is repeated; a proxy in front may have verified the other value.
        """
        if not self._guard.authenticates:
            return _NO_CREDENTIALS
        authorization, api_key = _single_header(request, "Authorization"), _single_header(request, "X-Api-Key")
        certificate = certificate_names(request.get_extra_info("peercert")) if request.secure else ()
        return Credentials(authorization, api_key, certificate)

    async def _send(self, request: web.Request, response: web.Response) -> None:
        """Send an answer that may exceed the network buffers, to a client that may never read it."""
        chunks = 1 + (response.content_length or 0) // CHUNK_BYTES
        try:
            async with asyncio.timeout(self._write_timeout * chunks):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            self._log.info("slow reader disconnected", request_id=request[REQUEST_ID])
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has left

    def _method_not_allowed(self, allowed: Sequence[str]) -> Handler:
        """Return a handler for the methods that a path does not support."""

        async def reject(request: web.Request) -> web.Response:
            if request.method != "OPTIONS":
                raise web.HTTPMethodNotAllowed(request.method, allowed)
            headers = {"Allow": ", ".join((*allowed, "OPTIONS"))}
            if self._origins and "Access-Control-Request-Method" in request.headers:
                headers |= {
                    "Access-Control-Allow-Methods": _CORS_METHODS,
                    "Access-Control-Allow-Headers": _CORS_REQUEST_HEADERS,
                    "Access-Control-Max-Age": _CORS_MAX_AGE_SECONDS,
                }
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)

        return reject

    def _log_request(self, request: web.Request, status: int, seconds: float, context: RequestContext) -> None:
        # The path may contain arbitrary bytes.
        path = request.raw_path[:MAX_URL_BYTES].encode("ascii", "backslashreplace").decode()
        self._log.log(
            logging.WARNING if status >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.INFO,
            "request",
            method=request.method,
            path=path,
            status=status,
            milliseconds=round(seconds * 1000, 3),
            **context.log_fields(),
            **caller_fields(),
        )


def _single_header(request: web.Request, name: str) -> str:
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise Unauthenticated("send one credential, not two")
    return values[0] if values else ""


def peer_of(request: web.Request) -> Peer:
    """Return a function that returns the client's address."""
    return lambda: request.remote or ""


def _with_span(handler: Handler, path: str, tracer: Tracer) -> Handler:
    async def traced(request: web.Request) -> web.StreamResponse:
        method = request.method if request.method in _KNOWN_METHODS else "_OTHER"
        attributes: Attributes = {"http.request.method": method, "http.route": path}
        with tracer.trace_call(f"{method} {path}", attributes, request.headers.get) as span:
            response = await handler(request)
            status = response.status
            span.set_result({"http.response.status_code": status}, failed=status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        return response

    return traced


def _peer(request: web.Request) -> str:
    name: Any = request.transport.get_extra_info("peername") if request.transport else None
    return f"{name[0]}:{name[1]}" if name else ""


async def _not_found(_: web.Request) -> web.Response:
    raise web.HTTPNotFound


def _compress(request: web.Request, response: web.StreamResponse) -> None:
    # Not left to aiohttp, which prefers deflate and uses gzip even if the client sends "gzip;q=0".
    if not isinstance(response, web.Response) or (response.content_length or 0) < _MIN_COMPRESSED_BYTES:
        return
    accepted = request.headers["Accept-Encoding"].lower()
    if "gzip" in accepted and not _NOT_GZIP.search(accepted):
        response.enable_compression(web.ContentCoding.gzip)
