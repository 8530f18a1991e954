"""What is done for every request: its id, limits, errors, CORS, compression and a line in the log."""

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
from registry_server.security.limits import Call
from registry_server.security.permissions import API, ROUTES, Permission
from registry_server.security.tls import names_of

LONGEST_URL: Final = 8_192
"""Most bytes of path and query."""
CHUNK_BYTES: Final = 64 << 10
"""How much a client must take within the time that it has for writes."""
REQUEST_ID: Final = web.RequestKey("request_id", str)
IDENTITY: Final = web.RequestKey("identity", Identity)

_COUNTED: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
_METHODS: Final = "GET, HEAD, POST, PUT, DELETE"
_REQUEST_HEADERS: Final = "Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Request-Id, Authorization, X-Api-Key"
_EXPOSED_HEADERS: Final = "Allow, ETag, Location, Retry-After, WWW-Authenticate, X-Request-Id"
_UNCOUNTED: Final = (f"{API}/events", "/health", "/health/live", "/metrics")
"""Paths that are not counted as calls: streams are watches, and how the registry is can be asked at any time."""
_PREFLIGHT_SECONDS: Final = "600"
_LEAST_COMPRESSED: Final = 1_024
"""Bytes: less than this becomes hardly smaller, and fits one packet anyway."""
_NOTHING: Final = Credentials()
_NOT_GZIP: Final = re.compile(r"\bgzip\s*;\s*q=0(\.0*)?\s*(,|$)")


class Route:
    """What is counted of the requests of one path, or of all that there is no path for."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        """By method and status; a method that HTTP does not know is ``OTHER``."""
        self.seconds = Histogram()
        """How long they took; without event streams, which last as long as their reader likes."""

    def count(self, method: str, response: web.StreamResponse, seconds: float) -> None:
        """Counts a request that is answered."""
        self.answers[method if method in _COUNTED else "OTHER", response.status] += 1
        if isinstance(response, web.Response):  # an event stream is another kind
            self.seconds.observe(seconds)


class Middleware:
    """Stands around every handler.

    Not as aiohttp's middleware, which takes 8 µs before it has done anything: handlers are wrapped as they are routed.
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
        """Makes it.

        Args:
            envelope: Makes answers of errors.
            guard: Stands before every route.
            cors_origins: Origins whose pages are let in, or ``*``.
            logs: Which requests get a line.
            write_timeout: Seconds within which a client must take 64 KiB.
            max_body_bytes: Largest body that is taken.
            tracer: Times requests, if they are traced.
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
        self._tells_all = logs.requests == "all"
        self._tells_errors = logs.requests != "off"

    @property
    def routes(self) -> Mapping[str, Route]:
        """What is counted, by path with its parameters in braces; ``OTHER`` is where there is none."""
        return self._routes

    def route(self, router: web.UrlDispatcher, routes: Iterable[web.RouteDef]) -> None:
        """Routes all requests that there may be: those of the table to its handlers, all others to refusals.

        Args:
            router: A router without routes.
            routes: The whole table.
        """
        for route in routes:
            around = self._around(route.handler, route.path, ROUTES[route.method, route.path])
            web.RouteDef(route.method, route.path, around, route.kwargs).register(router)
        for resource in list(router.resources()):
            allowed = sorted(route.method for route in resource)
            if isinstance(resource, web.Resource):
                resource.add_route("*", self._around(self._others(allowed), resource.canonical))
        router.add_route("*", "/{path:.*}", self._around(_nothing, "OTHER"))

    def add_headers(self, request: web.Request, headers: CIMultiDict[str]) -> None:
        """Adds the headers of every answer; handlers that begin their answer themselves call it."""
        headers["X-Request-Id"] = request[REQUEST_ID]
        headers["X-Content-Type-Options"] = "nosniff"
        headers["Server"] = "ossa-registry"  # and not which versions of what it runs on
        headers["Vary"] = "Accept-Encoding"
        if not self._origins:
            return
        if not self._any_origin:
            headers["Vary"] = "Accept-Encoding, RequestContext"
        origin = request.headers.get("RequestContext")
        if origin is not None and (self._any_origin or origin in self._origins):
            headers["Access-Control-Allow-RequestContext"] = "*" if self._any_origin else origin
            headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS

    def _around(self, handler: Any, path: str, permission: Permission | None = None) -> Handler:
        """Wraps a handler; without a permission it only refuses, and whoever asks may be told so."""
        route = self._routes.setdefault(path, Route())
        counted = permission is not None and path not in _UNCOUNTED

        async def around(request: web.Request) -> web.StreamResponse:
            began = time.perf_counter()
            origin = RequestContext("http", request.headers.get, partial(_peer, request))
            REQUEST_CONTEXT.set(origin)  # for this request: the next one of the connection sets its own
            current_identity.set(UNCHECKED)
            request[REQUEST_ID] = origin.request_id
            with Call(self._guard.in_flight) as call:
                response = await self._answer(request, handler, permission, call if counted else None)
                if not response.prepared:
                    await self._finish(request, response)
            seconds = time.perf_counter() - began
            route.count(request.method, response, seconds)
            if self._tells_all or (self._tells_errors and response.status >= HTTPStatus.BAD_REQUEST):
                self._tell(request, response.status, seconds, origin)
            return response

        return around if self._tracer is None else _traced(around, path, self._tracer)

    async def _answer(
        self, request: web.Request, handler: Any, permission: Permission | None, call: Call | None
    ) -> web.StreamResponse:
        """Has a handler answer, or answers in its place."""
        request_id = request[REQUEST_ID]
        try:
            if len(request.raw_path) > LONGEST_URL:
                raise web.HTTPRequestURITooLong(text=f"the URL is longer than {LONGEST_URL} bytes")  # noqa: TRY301
            if call is not None:
                call.begin(self._body_bytes(request))
            if permission is not None:
                identity = await self._guard.admit(self.presented(request), permission, peer_of(request))
                request[IDENTITY] = identity
                current_identity.set(identity)
            response: web.StreamResponse = await handler(request)
            if call is not None and isinstance(response, web.Response):
                call.hold(response.content_length or 0)
        except ConnectionError:  # the client has gone: nobody is there to be told
            return web.Response(status=HTTPStatus.BAD_REQUEST)
        except Exception as error:  # noqa: BLE001 - the one place that turns errors into answers
            return self._envelope.failure(failure_of(error, request_id), request_id)
        return response

    def _body_bytes(self, request: web.Request) -> int:
        """How much of the body of a request may be read; one that does not say how long it is may be of any length."""
        if not request.body_exists:
            return 0
        declared = request.content_length
        return self._max_body_bytes if declared is None else min(declared, self._max_body_bytes)

    async def _finish(self, request: web.Request, response: web.StreamResponse) -> None:
        """Gives an answer what every one has; sends it if that may take long."""
        self.add_headers(request, response.headers)
        if "Accept-Encoding" in request.headers:
            _compress(request, response)
        if isinstance(response, web.Response) and (response.content_length or 0) > CHUNK_BYTES:
            await self._send(request, response)

    def presented(self, request: web.Request) -> Credentials:
        """What a caller shows.

        Raises:
            Unauthenticated: It shows the same header twice: another server on the way may have read the other one.
        """
        if not self._guard.checks:
            return _NOTHING
        authorization, api_key = _only(request, "Authorization"), _only(request, "X-Api-Key")
        certificate = names_of(request.get_extra_info("peercert")) if request.secure else ()
        return Credentials(authorization, api_key, certificate)

    async def _send(self, request: web.Request, response: web.Response) -> None:
        """Sends an answer that may not fit the buffers between here and the client, which may never read it."""
        chunks = 1 + (response.content_length or 0) // CHUNK_BYTES
        try:
            async with asyncio.timeout(self._write_timeout * chunks):
                await response.prepare(request)
                await response.write_eof()
        except TimeoutError:
            self._log.info("answer cut: its client does not read", request_id=request[REQUEST_ID])
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass  # the client has left

    def _others(self, allowed: Sequence[str]) -> Handler:
        """Handles the methods that a path does not have."""

        async def others(request: web.Request) -> web.Response:
            if request.method != "OPTIONS":
                raise web.HTTPMethodNotAllowed(request.method, allowed)
            headers = {"Allow": ", ".join((*allowed, "OPTIONS"))}
            if self._origins and "Access-Control-Request-Method" in request.headers:
                headers |= {
                    "Access-Control-Allow-Methods": _METHODS,
                    "Access-Control-Allow-Headers": _REQUEST_HEADERS,
                    "Access-Control-Max-Age": _PREFLIGHT_SECONDS,
                }
            return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)

        return others

    def _tell(self, request: web.Request, status: int, seconds: float, origin: RequestContext) -> None:
        self._log.log(
            logging.WARNING if status >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.INFO,
            "request",
            method=request.method,
            path=request.raw_path[:LONGEST_URL].encode("ascii", "backslashreplace").decode(),  # bytes of no encoding
            status=status,
            milliseconds=round(seconds * 1000, 3),
            **origin.fields(),
            **caller_fields(),
        )


def _only(request: web.Request, name: str) -> str:
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise Unauthenticated("give one credential, not two")
    return values[0] if values else ""


def peer_of(request: web.Request) -> Peer:
    """Tells the address of the other end."""
    return lambda: request.remote or ""


def _traced(handler: Handler, path: str, tracer: Tracer) -> Handler:
    async def traced(request: web.Request) -> web.StreamResponse:
        method = request.method if request.method in _COUNTED else "_OTHER"
        known: Attributes = {"http.request.method": method, "http.route": path}
        with tracer.call(f"{method} {path}", known, request.headers.get) as span:
            response = await handler(request)
            status = response.status
            span.ended({"http.response.status_code": status}, failed=status >= HTTPStatus.INTERNAL_SERVER_ERROR)
        return response

    return traced


def _peer(request: web.Request) -> str:
    name: Any = request.transport.get_extra_info("peername") if request.transport else None
    return f"{name[0]}:{name[1]}" if name else ""


async def _nothing(_: web.Request) -> web.Response:
    raise web.HTTPNotFound


def _compress(request: web.Request, response: web.StreamResponse) -> None:
    # Not aiohttp's own choice: it takes deflate first, and "gzip;q=0" for a yes.
    if not isinstance(response, web.Response) or (response.content_length or 0) < _LEAST_COMPRESSED:
        return
    accepted = request.headers["Accept-Encoding"].lower()
    if "gzip" in accepted and not _NOT_GZIP.search(accepted):
        response.enable_compression(web.ContentCoding.gzip)
