"""``HttpServer``: the HTTP server and its routes."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from ossa.registry.v1.service_pb2 import HealthStatus
from ossa_common.json_shape import STATUS_WORDS
from registry_server.config import HttpSettings, LogSettings
from registry_server.errors import ConfigurationError
from registry_server.gateway.bodies import BODY_TIMEOUT_SECONDS
from registry_server.gateway.docs import docs_routes
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import Envelope
from registry_server.gateway.events import EventStream
from registry_server.gateway.middleware import MAX_URL_BYTES, Middleware, Route
from registry_server.gateway.protocol import Runner
from registry_server.gateway.routes import BASE, Api
from registry_server.instrumentation.counters import CacheCounters
from registry_server.instrumentation.tracing import Tracer
from registry_server.registry import ServiceRegistry
from registry_server.runtime.clock import Clock, system_clock
from registry_server.security.guard import Guard
from registry_server.security.tls import Certificates


class HttpCounters(NamedTuple):
    """Counters of an HTTP server."""

    routes: Mapping[str, Route]
    """By path template; ``OTHER`` counts requests for unknown paths."""
    listing: CacheCounters
    """Hits and misses of cached answers to ``GET /services``."""


_KEEP_ALIVE_SECONDS = 75.0
"""How long an idle connection stays open: slightly longer than load balancers keep theirs (60 s)."""
_LINGER_SECONDS = 2.0
"""How long to read the rest of a rejected body, so that its sender receives the error."""


class HttpServer:
    """Serves the REST API, the event stream, their documentation, readiness, liveness and metrics."""

    def __init__(
        self,
        registry: ServiceRegistry,
        settings: HttpSettings,
        *,
        metrics: Callable[[], Awaitable[bytes]],
        metrics_type: str,
        grace: float,
        guard: Guard,
        certificates: Certificates | None,
        shared_port: bool = False,
        body_timeout: float = BODY_TIMEOUT_SECONDS,
        logs: LogSettings | None = None,
        tracer: Tracer | None = None,
        clock: Clock = system_clock,
    ) -> None:
        """Create the server and its routes; nothing listens yet.

        Args:
            registry: The use cases.
            settings: Address and request limits.
            metrics: Returns the metrics of this process.
            metrics_type: Their content type.
            grace: Seconds that requests in flight have to finish when the server stops.
            guard: Admits every request.
            certificates: Certificates for TLS; ``None`` = plaintext.
            shared_port: Whether other processes listen on the same port.
            body_timeout: Seconds within which a request's body must arrive.
            logs: Which requests to log; by default those that end with an error.
            tracer: Records a span for each request; ``None`` = no tracing.
            clock: Wall clock.
        """
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._metrics_type = metrics_type
        self._shared_port = shared_port
        self._draining = False
        envelope, documents = Envelope(clock), Documents()
        write_timeout = settings.write_timeout_ms / 1000
        middleware = Middleware(
            envelope,
            guard,
            settings.cors_origins,
            logs or LogSettings(),
            write_timeout=write_timeout,
            max_body_bytes=settings.max_body_bytes,
            tracer=tracer,
        )
        api = Api(registry, envelope, documents, max_body_bytes=settings.max_body_bytes, body_timeout=body_timeout)
        events = EventStream(
            registry,
            documents,
            middleware,
            guard,
            keep_alive=settings.events_keep_alive_ms / 1000,
            write_timeout=write_timeout,
        )
        app = web.Application(client_max_size=settings.max_body_bytes)
        routes = [
            *api.routes(),
            web.get(f"{BASE}/events", events.stream),
            web.get("/health", self._ready),
            web.get("/health/live", self._live),
            web.get("/metrics", self._serve_metrics),
            *docs_routes(),
        ]
        middleware.add_routes(app.router, routes)
        self._app = app
        self.counters = HttpCounters(middleware.routes, api.cache)
        """Counters for the metrics."""
        self._certificates = certificates
        self._runner = Runner(
            app,
            header_timeout=settings.header_timeout_ms / 1000,
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            # Above our own limit: a URL that exceeds ours is answered with an error instead of a closed connection.
            max_line_size=4 * MAX_URL_BYTES,
            max_headers=settings.max_headers,
            max_field_size=settings.max_header_bytes,
            lingering_time=_LINGER_SECONDS,
            shutdown_timeout=grace,
            logger=_server_logger(),
        )

    @property
    def routes(self) -> list[tuple[str, str]]:
        """Method and path of every route, without the fallbacks that reject requests."""
        return [
            (route.method, route.resource.canonical)
            for route in self._app.router.routes()
            if route.resource and route.method != "*"
        ]

    async def start(self) -> str:
        """Start serving and return the address with the actual port.

        Raises:
            ConfigurationError: Listening on the address failed.
        """
        await self._runner.setup()
        host, wanted_port = self._settings.host_port
        context = None if self._certificates is None else self._certificates.context()
        site = web.TCPSite(self._runner, host, wanted_port, ssl_context=context, reuse_port=self._shared_port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(
                f"http.address: cannot listen on {self._settings.address}: {error.strerror}"
            ) from error
        port = self._runner.addresses[0][1]
        return f"{self._settings.address.rpartition(':')[0]}:{port}"

    def begin_drain(self) -> None:
        """Report "not ready" from now on, so that load balancers stop sending requests."""
        self._draining = True

    async def stop(self) -> None:
        """Let requests in flight finish and close the server."""
        await self._runner.cleanup()

    async def _ready(self, _: web.Request) -> web.Response:
        health = self._registry.registry_health()
        ready = health.status != HealthStatus.HEALTH_STATUS_UNHEALTHY and not self._draining
        status = STATUS_WORDS.get(health.status, "unknown")
        return web.json_response({"status": status if ready else "unhealthy"}, status=200 if ready else 503)

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _serve_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=await self._metrics(), headers={"Content-Type": self._metrics_type})


def _server_logger() -> logging.Logger:
    """Return the logger of aiohttp's server, without the tracebacks for peers that send malformed HTTP."""

    def is_relevant(record: logging.LogRecord) -> bool:
        malformed = record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)
        return not malformed or logger.isEnabledFor(logging.DEBUG)

    logger = logging.getLogger(f"{__name__}.http")
    logger.filters = [is_relevant]
    return logger
