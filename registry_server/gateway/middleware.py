"""``HttpCall``: one HTTP request; ``Middleware``: routes, CORS, compression and sending, the same for all requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import structlog
from aiohttp import web

from ossa_common.violations import Violation
from registry_server.admission import Admission, CallScope, Endpoint
from registry_server.config import HttpSettings
from registry_server.errors import InvalidRequest, PermissionDenied, RateLimited, Unauthenticated
from registry_server.gateway.answers import Answer
from registry_server.gateway.browsers import BrowserRules
from registry_server.gateway.compression import MIN_COMPRESSED_BYTES, Compression, accepts_gzip
from registry_server.gateway.envelope import Envelope, failure_of
from registry_server.gateway.protocol import ServerProtocol
from registry_server.gateway.routing import Router
from registry_server.instrumentation.request_context import REQUEST_CONTEXT
from registry_server.instrumentation.tracing import Attributes
from registry_server.security.authenticator import Credentials
from registry_server.security.guard import GUEST
from registry_server.security.identity import UNCHECKED, caller_key, current_identity
from registry_server.security.limits import SMALL_REQUEST_BYTES, Streams
from registry_server.security.permissions import Permission
from registry_server.security.tls import certificate_names

MAX_URL_BYTES: Final = 8_192
"""Maximum length of path and query."""
CHUNK_BYTES: Final = 64 << 10
"""Size of the pieces in which answers are written, each once the client has read those before it."""

_KNOWN_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
_CORS_METHODS: Final = "GET, HEAD, POST, PUT, DELETE"
_CORS_REQUEST_HEADERS: Final = (
    "Content-Type, If-Match, If-None-Match, Last-Event-ID, X-Request-Id, Authorization, X-Api-Key"
)
_CORS_EXPOSED_HEADERS: Final = "Allow, ETag, Location, Retry-After, WWW-Authenticate, X-Request-Id"
_CORS_MAX_AGE_SECONDS: Final = "600"
_MAX_LOGGED_PATH: Final = 256
_NO_PARAMETERS: Final[Mapping[str, str]] = MappingProxyType({})


Response: TypeAlias = Answer | web.StreamResponse
Handler: TypeAlias = Callable[[Any, "HttpCall"], Awaitable[Response]]
BoundHandler: TypeAlias = Callable[["HttpCall"], Awaitable[Response]]


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


class Target(NamedTuple):
    """What handles a request."""

    handler: BoundHandler
    endpoint: Endpoint
    path: str
    """Path as template."""


class Resource(NamedTuple):
    """What handles the requests of one path."""

    methods: Mapping[str, Target]
    other: Target
    """Handles all other methods."""


class Middleware:
    """Calls the handler of every request, and completes its answer.

    aiohttp's own application, router and middleware would add 20 µs to each request.
    """

    def __init__(
        self, envelope: Envelope, admission: Admission, settings: HttpSettings, browsers: BrowserRules
    ) -> None:
        self.envelope = envelope
        self.admission = admission
        self.browsers = browsers
        self.compression = Compression()
        self._write_timeout = settings.write_timeout_ms / 1000
        self._any_origin = "*" in settings.cors_origins
        self._origins = frozenset(settings.cors_origins)
        self._router: Router[Resource] = Router(())
        self._not_found = self._reject(_not_found, "OTHER")

    def add_routes(self, routes: Sequence[Route], api: Any, *, base: str) -> None:
        """Route the requests of the table to its handlers, and reject all others.

        Args:
            routes: The complete table.
            api: Object that the handlers belong to.
            base: Prefix of the paths that may end with a slash.
        """
        targets: dict[str, dict[str, Target]] = {}
        for route in routes:
            counters = self.admission.counters_of(route.path)
            endpoint = Endpoint(route.permission, counters, limited=route.limited, streams=route.streams)
            methods = targets.setdefault(route.path, {})
            methods[route.method] = Target(partial(route.handler, api), endpoint, route.path)
            if route.method == "GET":
                methods["HEAD"] = methods["GET"]
        resources = {path: self._resource(path, methods) for path, methods in targets.items()}
        # Express, and so the OSSA reference implementation, also accepts a trailing slash.
        with_slash = {f"{path}/": resource for path, resource in resources.items() if path.startswith(base)}
        self._router = Router((with_slash | resources).items())

    def _resource(self, path: str, methods: Mapping[str, Target]) -> Resource:
        return Resource(methods, self._reject(partial(self._reject_method, sorted(methods)), path))

    def _reject(self, handler: BoundHandler, path: str) -> Target:
        """Return the target of requests that are only rejected, which needs no credential."""
        return Target(handler, Endpoint(None, self.admission.counters_of(path), limited=False), path)

    def handle(self, request: web.BaseRequest, mounted_at: str = "") -> Coroutine[Any, Any, Response]:
        """Return the coroutine that answers a request.

        Args:
            request: The request.
            mounted_at: Prefix of the path that does not belong to the routes.
        """
        path, _, query_string = request.raw_path.partition("?")
        if "%" in path or "#" in request.raw_path or path[:1] != "/":
            path, query_string = request.rel_url.path_safe, request.rel_url.raw_query_string
        resource, name = self._router.find(path.removeprefix(mounted_at))
        target = self._not_found if resource is None else resource.methods.get(request.method, resource.other)
        return HttpCall(self, target, request, name, query_string).run()

    def add_headers(self, call: "HttpCall", headers: MutableMapping[str, str]) -> None:
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

    async def send(self, call: "HttpCall", answer: Answer) -> web.StreamResponse:
        """Send a large answer in pieces, so that the connection never holds all of it."""
        body = answer.body
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_length = len(body)
        with suppress(ConnectionError):
            await response.prepare(call.request)
            if call.request.method != "HEAD":
                await self.write(call, response, body)
            await response.write_eof()
        return response

    async def write(self, call: "HttpCall", response: web.StreamResponse, text: bytes, held: int = 0) -> None:
        """Write to a stream in pieces. A client that does not read is disconnected, by ``gateway/protocol.py`` or here.

        Args:
            call: The request.
            response: Its answer, of which the head was sent.
            text: What to write.
            held: Bytes that this call alone holds until the client has read them, if nothing else counts them.

        Raises:
            ConnectionError: The client left or was disconnected.
        """
        protocol = call.protocol
        if protocol is None:
            try:
                async with asyncio.timeout(self._write_timeout):
                    await _write_pieces(call, response, text)
            except TimeoutError:
                if call.request.transport is not None:
                    call.request.transport.abort()
                raise ConnectionResetError("the client does not read") from None
            return
        protocol.pending_bytes = held
        try:
            await _write_pieces(call, response, text)
        finally:
            protocol.pending_bytes = 0

    def admit_malformed(self, address: str) -> bool:
        """Charge a request that is not HTTP to its address; return whether to answer it."""
        try:
            self.admission.guard.charge(GUEST, caller_key(GUEST, lambda: address))
        except RateLimited:
            return False
        return True

    async def _reject_method(self, allowed: Sequence[str], call: "HttpCall") -> Answer:
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
        return Answer(status=HTTPStatus.NO_CONTENT, headers=headers)


class HttpCall(CallScope):
    """One HTTP request."""

    transport = "http"
    log: ClassVar[Any] = structlog.get_logger(__name__)

    shares_answer = False
    """Whether its answer is not a copy, and so is not counted as held by the call."""
    _status = 0

    def __init__(
        self, middleware: Middleware, target: Target, request: web.BaseRequest, name: str, query_string: str
    ) -> None:
        """Create the scope of a request.

        Args:
            middleware: What all requests share.
            target: What handles it.
            request: The request.
            name: Name of the service in its path; empty if there is none.
            query_string: Its query string as it was sent.
        """
        super().__init__(middleware.admission, target.endpoint)
        self.middleware, self.path, self.request = middleware, target.path, request
        self.name, self.query_string = name, query_string
        self._handler = target.handler

    # Reading the request.

    def header(self, name: str) -> str | None:
        """Return a header."""
        return self.request.headers.get(name)

    @property
    def query(self) -> Mapping[str, str]:
        """The decoded parameters; a repeated one occurs repeatedly (``MultiDict``)."""
        return self.request.query if self.query_string else _NO_PARAMETERS

    @property
    def protocol(self) -> ServerProtocol | None:
        """The connection; ``None`` if it belongs to the server of another program (``gateway/mounting.py``)."""
        protocol = self.request.protocol
        return protocol if isinstance(protocol, ServerProtocol) else None

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
        return 0  # a body is counted as it arrives (``gateway/bodies.py``)

    def _begin(self) -> None:
        REQUEST_CONTEXT.set(self)
        current_identity.set(UNCHECKED)
        try:
            if len(self.request.raw_path) > MAX_URL_BYTES:
                raise web.HTTPRequestURITooLong(text=f"the URL is longer than {MAX_URL_BYTES} bytes")
            self.middleware.browsers.check(self.request.method, self.request.headers)
        except (web.HTTPException, PermissionDenied):
            self.admission.guard.charge_guest(self)
            raise

    async def _handle(self) -> Response:
        if self.endpoint.streams is not None and self.request.body_exists:
            raise InvalidRequest([Violation("body", "is not supported by this path")])  # the stream would hold it
        response = await self._handler(self)
        if self.slot is not None and not self.shares_answer:
            size = len(response.body) if isinstance(response, Answer) else 0
            if size > SMALL_REQUEST_BYTES:
                self.slot.hold_bytes(size)
        return await self._finish(response)

    async def _fail(self, error: Exception) -> Response:
        if isinstance(error, ConnectionError):  # the client left; the answer is never sent
            response = Answer(status=HTTPStatus.BAD_REQUEST)
        else:
            response = self.middleware.envelope.failure(failure_of(error), self.request_id)
        # A body refers to the error that ended it: with the frames of this call that is a cycle, which the garbage
        # collector frees late.
        error.__traceback__ = None
        return await self._finish(response)

    async def _finish(self, response: Response) -> Response:
        """Add common headers and compression, unless the answer was sent; send a large one with a timeout."""
        self._status = response.status
        self.timed = isinstance(response, Answer)  # not an event stream
        self.result = f"{self._method('OTHER')} {response.status}"
        if not isinstance(response, Answer):
            return response
        self.middleware.add_headers(self, response.headers)
        if len(response.body) >= MIN_COMPRESSED_BYTES and accepts_gzip(self.request):
            await self.middleware.compression.compress(response)
        if len(response.body) > CHUNK_BYTES:
            return await self.middleware.send(self, response)
        return response

    # Reporting the request.

    def _failure_level(self) -> int:
        if self._status < HTTPStatus.BAD_REQUEST:
            return 0
        return logging.INFO if self._status < HTTPStatus.INTERNAL_SERVER_ERROR else logging.WARNING

    def _result_fields(self) -> dict[str, Any]:
        # The path may contain arbitrary bytes, each of which is escaped as four characters.
        path = self.request.raw_path[:_MAX_LOGGED_PATH].encode("ascii", "backslashreplace").decode()[:_MAX_LOGGED_PATH]
        return {"method": self.request.method, "path": path, "status": self._status}

    def _span_start(self) -> tuple[str, Attributes]:
        method = self._method("_OTHER")
        return f"{method} {self.path}", {"http.request.method": method, "http.route": self.path}

    def _span_end(self) -> tuple[Attributes, bool]:
        return {"http.response.status_code": self._status}, self._status >= HTTPStatus.INTERNAL_SERVER_ERROR

    def _method(self, other: str) -> str:
        """Return the method, or ``other`` if it is unknown."""
        return self.request.method if self.request.method in _KNOWN_METHODS else other


async def _write_pieces(call: HttpCall, response: web.StreamResponse, text: bytes) -> None:
    view = memoryview(text)
    for start in range(0, len(text), CHUNK_BYTES):
        if start:
            await asyncio.sleep(0)
        await response.write(view[start : start + CHUNK_BYTES])
        await call.request.writer.drain()


async def _not_found(call: HttpCall) -> Answer:
    hint = "; write a slash in a name as %2F" if "/services/" in call.request.path else ""
    raise web.HTTPNotFound(text=f"there is no resource at this path{hint}")
