"""``HttpServer``: the HTTP server."""

import logging
from collections.abc import Awaitable, Callable

import structlog
from aiohttp.http_exceptions import HttpProcessingError

from registry_server.admission import Admission
from registry_server.config import HttpSettings
from registry_server.errors import ConfigurationError
from registry_server.gateway.bodies import BODY_TIMEOUT_SECONDS
from registry_server.gateway.browsers import BrowserRules
from registry_server.gateway.connections import Connections
from registry_server.gateway.envelope import Envelope
from registry_server.gateway.listener import Listener
from registry_server.gateway.middleware import MAX_URL_BYTES, Middleware
from registry_server.gateway.protocol import ConnectionLimits, Runner
from registry_server.gateway.routes import BASE, ROUTES, Api
from registry_server.instrumentation.problems import Problems
from registry_server.registry import ServiceRegistry
from registry_server.runtime.clock import Clock, system_clock
from registry_server.security.tls import Certificates

_KEEP_ALIVE_SECONDS = 75.0
"""How long an idle connection stays open: slightly longer than load balancers keep theirs (60 s)."""
_LINGER_SECONDS = 2.0
"""How long to read the rest of a rejected body, so that its sender receives the error."""
_MAX_LINE_BYTES = MAX_URL_BYTES + 1_024
"""Above our own limit: a URL that exceeds ours is answered with an error instead of a closed connection. aiohttp needs
10 ms to route 8,192 slashes, and four times as long for twice as many."""
_MAX_LARGE_HEADERS = 4
"""Headers of the maximum size in one request."""
_READ_BUFFER_BYTES = 16 << 10
"""Half of what a body may have unread before its connection is no longer read."""

log = structlog.get_logger(__name__)


class HttpServer:
    """Serves the routes of ``gateway/routes.py``; implements ``Transport``."""

    def __init__(
        self,
        registry: ServiceRegistry,
        settings: HttpSettings,
        *,
        metrics: Callable[[], Awaitable[bytes]],
        admission: Admission,
        grace: float,
        certificates: Certificates | None,
        shared_port: bool = False,
        needs_credential: bool = False,
        body_timeout: float = BODY_TIMEOUT_SECONDS,
        clock: Clock = system_clock,
        problems: Problems | None = None,
    ) -> None:
        """Create the server and its routes; nothing listens yet.

        Args:
            registry: The use cases.
            settings: Address and request limits.
            metrics: Returns the metrics of this process.
            admission: Admits every request; not shared with another transport.
            grace: Seconds that requests in flight have to finish when the server stops.
            certificates: Certificates for TLS; ``None`` = plaintext.
            shared_port: Whether other processes listen on the same port.
            needs_credential: Whether callers need a credential.
            body_timeout: Seconds within which a request's body must arrive.
            clock: Wall clock.
            problems: Problems of the process, for ``GET /health``.
        """
        self._settings = settings
        self._shared_port = shared_port
        envelope = Envelope(clock)
        self._api = Api(registry, envelope, settings, metrics, body_timeout, problems or Problems())
        self.counters = admission.counters
        """Counters for the metrics."""
        self.counters.caches["listing"] = self._api.listing.counters
        middleware = Middleware(
            envelope, admission, settings, BrowserRules(settings, needs_credential=needs_credential)
        )
        middleware.add_routes(ROUTES, self._api, base=BASE)
        self._certificates = certificates
        self._connections = Connections(settings, admission.guard.in_flight.bytes.limit)
        self._listener: Listener | None = None
        self._runner = Runner(
            middleware.handle,
            ConnectionLimits(
                header_timeout=settings.header_timeout_ms / 1000,
                write_timeout=settings.write_timeout_ms / 1000,
                max_headers_bytes=_MAX_LINE_BYTES + _MAX_LARGE_HEADERS * settings.max_header_bytes,
                admit_malformed=middleware.admit_malformed,
            ),
            access_log=None,
            auto_decompress=False,  # aiohttp would inflate bodies of callers that are not admitted
            keepalive_timeout=_KEEP_ALIVE_SECONDS,
            max_line_size=_MAX_LINE_BYTES,
            max_headers=settings.max_headers,
            max_field_size=settings.max_header_bytes,
            read_bufsize=_READ_BUFFER_BYTES,
            lingering_time=_LINGER_SECONDS,
            shutdown_timeout=grace,
            logger=_server_logger(),
        )

    async def start(self) -> str:
        """Start serving and return the address with the actual port.

        Raises:
            ConfigurationError: Listening on the address failed.
        """
        await self._runner.setup()
        self._listener = Listener(
            self._runner.make_protocol,
            self._connections,
            tls=None if self._certificates is None else self._certificates.context(),
            handshake_timeout=self._settings.header_timeout_ms / 1000,
        )
        try:
            port = await self._listener.start(self._settings.host_port, shared_port=self._shared_port)
        except OSError as error:
            raise ConfigurationError(
                f"http.address: cannot listen on {self._settings.address}: {error.strerror}"
            ) from error
        bound = f"{self._settings.address.rpartition(':')[0]}:{port}"
        scheme = "http" if self._certificates is None else "https"
        log.info("HTTP listening", address=bound, health=f"{scheme}://{bound}/health")
        return bound

    async def begin_drain(self) -> None:
        """Report "not ready" from now on, so that load balancers stop sending requests."""
        self._api.draining = True

    async def drain(self) -> None:
        """Let requests in flight finish within the grace period and close the server."""
        if self._listener is not None:
            await self._listener.close()
        await self._runner.cleanup()


def _server_logger() -> logging.Logger:
    """Return the logger of aiohttp's server, without the tracebacks for peers that send malformed HTTP."""

    def is_relevant(record: logging.LogRecord) -> bool:
        malformed = record.exc_info is not None and isinstance(record.exc_info[1], HttpProcessingError)
        return not malformed or logger.isEnabledFor(logging.DEBUG)

    logger = logging.getLogger(f"{__name__}.http")
    logger.filters = [is_relevant]
    return logger
