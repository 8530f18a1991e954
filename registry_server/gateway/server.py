"""``HttpServer``: the HTTP server with everything on it."""

from collections.abc import Callable

from aiohttp import web

from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.config import HttpSettings
from registry_server.errors import ConfigurationError
from registry_server.registry import ServiceRegistry


class HttpServer:
    """Serves readiness, liveness and metrics."""

    def __init__(
        self, registry: ServiceRegistry, settings: HttpSettings, *, metrics: Callable[[], bytes], metrics_type: str
    ) -> None:
        """Prepares it.

        Args:
            registry: What is served.
            settings: Where to listen.
            metrics: Gives the metrics of this process.
            metrics_type: Their content type.
        """
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._metrics_type = metrics_type
        self._draining = False
        app = web.Application()
        app.router.add_get("/health", self._ready)
        app.router.add_get("/health/live", self._live)
        app.router.add_get("/metrics", self._tell_metrics)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Begins to serve; gives the address with the port that was taken.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        await self._runner.setup()
        host, port = self._settings.host_port
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(
                f"http.address: cannot listen on {self._settings.address}: {error.strerror}"
            ) from error
        taken = self._runner.addresses[0][1]
        return f"{self._settings.address.rpartition(':')[0]}:{taken}"

    def begin_drain(self) -> None:
        """Answers "not ready" from now on, so that balancers go elsewhere."""
        self._draining = True

    async def stop(self) -> None:
        """Lets requests under way finish and closes the server."""
        await self._runner.cleanup()

    async def _ready(self, _: web.Request) -> web.Response:
        health = self._registry.registry_health()
        ready = health.status != HealthStatus.HEALTH_STATUS_UNHEALTHY and not self._draining
        status = HealthStatus.Name(health.status).removeprefix("HEALTH_STATUS_").lower()
        return web.json_response({"status": status if ready else "unhealthy"}, status=200 if ready else 503)

    async def _live(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _tell_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics(), headers={"Content-Type": self._metrics_type})
