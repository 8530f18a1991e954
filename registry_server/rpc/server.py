"""``RpcServer``: the gRPC server and its handlers."""

import asyncio
import resource
from typing import Final, get_args

import grpc
import structlog
from grpc_health.v1 import health, health_pb2

from registry_server.admission import Admission
from registry_server.config import GrpcSettings, LimitSettings
from registry_server.errors import ConfigurationError
from registry_server.registry import ServiceRegistry
from registry_server.rpc.builtin import HEALTH_SERVICE, REFLECTION_NAMES, REFLECTION_SERVICE, HealthRpc, ReflectionRpc
from registry_server.rpc.calls import RpcTransport
from registry_server.rpc.idle import IdleStreams
from registry_server.rpc.listener import Listener
from registry_server.rpc.methods import method_handlers
from registry_server.rpc.notifications import bulk_notifications
from registry_server.rpc.readers import SlowReaders
from registry_server.rpc.requests import AwaitedRequests
from registry_server.rpc.service import SERVICE, RegistryRpc
from registry_server.rpc.tls import server_credentials
from registry_server.runtime.tasks import cancel
from registry_server.security.limits import UNRESERVED_PART, Streams
from registry_server.security.tls import Certificates

_FINAL_SEND_SECONDS: Final = 0.1
"""Time for gRPC to send the last answers and health updates before remaining streams are cancelled."""
REJECTION_HEADROOM: Final = 5_000
"""RPCs that gRPC admits above our limits, so that excess callers receive a detailed error, and calls of public parts
whose request is not complete take no places of others: about 3,500 arrive in a second, and each is rejected in 0.35."""
_HANDSHAKE_TIMEOUT_MS: Final = 20_000
"""Time for a new connection to complete TLS and send its HTTP/2 settings."""
_UNLIMITED_CONNECTIONS: Final = 2**31 - 1
_MAX_PENDING_CALLS: Final = 3_000
"""Calls that gRPC queues before their handler starts, about one second of work; beyond it, callers time out first."""

log = structlog.get_logger(__name__)


class RpcServer:
    """Serves ``RegistryService``, ``grpc.health.v1`` and reflection; implements ``Transport``."""

    def __init__(
        self,
        registry: ServiceRegistry,
        settings: GrpcSettings,
        *,
        admission: Admission,
        limits: LimitSettings,
        grace: float,
        certificates: Certificates | None,
        shared_port: bool = False,
    ) -> None:
        """Create the server and its handlers; nothing listens yet.

        Args:
            registry: The use cases.
            settings: Address and message limits.
            admission: Admits every call; not shared with another transport.
            limits: Limits on concurrent calls, from which gRPC's own limit is computed.
            grace: Seconds that calls in flight have to finish when the server stops.
            certificates: Certificates for TLS; ``None`` = plaintext.
            shared_port: Whether other processes listen on the same port.
        """
        self._settings = settings
        self._admission = admission
        self.counters = admission.counters
        """Counters for the metrics."""
        self._grace = grace
        self._certificates = certificates
        self._health = health.aio.HealthServicer()
        self._limiting: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._readers = SlowReaders(settings.write_timeout_ms / 1000, admission.counters)
        self._requests = AwaitedRequests(admission.guard, settings.max_message_bytes)
        self._idle = IdleStreams(admission.guard.stream_idle_seconds)
        verifies_clients = certificates is not None and certificates.current().client_ca is not None
        transport = RpcTransport(
            admission,
            self._requests,
            self._idle,
            self._readers,
            verifies_clients,
        )
        health_handlers = method_handlers(HEALTH_SERVICE, HealthRpc(self._health), transport, counted=False)
        registry_handlers = method_handlers(SERVICE, RegistryRpc(registry), transport)
        handlers = {SERVICE.full_name: registry_handlers, HEALTH_SERVICE.full_name: health_handlers}
        if settings.reflection:
            reflection = ReflectionRpc((SERVICE.full_name, HEALTH_SERVICE.full_name, *REFLECTION_NAMES))
            handlers |= {
                name: method_handlers(REFLECTION_SERVICE, reflection, transport, counted=False, full_name=name)
                for name in REFLECTION_NAMES
            }

        def make_server() -> grpc.aio.Server:
            services = handlers.items()
            with bulk_notifications():
                return grpc.aio.server(
                    handlers=tuple(grpc.method_handlers_generic_handler(*service) for service in services),
                    options=_options(settings, shared_port=shared_port),
                    maximum_concurrent_rpcs=_max_concurrent_rpcs(limits),
                )

        self._listener = Listener(make_server, self._bind)

    async def start(self) -> str:
        """Start serving and return the address with the actual port.

        Raises:
            ConfigurationError: Listening on the address failed.
        """
        address = self._settings.address
        await self.set_serving(serving=False)
        self._limiting = [
            asyncio.create_task(self._readers.run(), name="slow-readers"),
            asyncio.create_task(self._requests.run(), name="incomplete-requests"),
            asyncio.create_task(self._idle.run(), name="idle-streams"),
        ]
        try:
            bound = await self._listener.start(address)
        except RuntimeError as error:
            raise ConfigurationError(f"grpc.address: cannot listen on {address}; is it in use?") from error
        tls = self._certificates is not None
        log.info("gRPC listening", address=bound, reflection=self._settings.reflection, tls=tls)
        return bound

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        if self._certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(self._certificates))

    async def set_serving(self, *, serving: bool) -> None:
        """Set the status that ``grpc.health.v1`` reports."""
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for name in ("", SERVICE.full_name):
            await self._health.set(name, status)

    async def begin_drain(self) -> None:
        """Stop accepting connections and calls; calls in flight continue.

        Return once clients were notified. Without this notice they would reopen ended streams on the same connection,
        where gRPC resets them without a reason.
        """
        await self._health.enter_graceful_shutdown()
        self._stopping = asyncio.create_task(self._listener.stop(self._grace), name="gRPC stop")
        await asyncio.sleep(min(self._grace, _FINAL_SEND_SECONDS))

    async def drain(self) -> None:
        """End streams, let calls in flight finish within the grace period, and cancel the remaining ones."""
        self._idle.begin_shutdown()
        self._requests.begin_shutdown()
        if not await self._admission.wait_idle(self._grace):
            log.warning("calls cancelled at shutdown", grace_seconds=self._grace)
        stopping = self._stopping or asyncio.create_task(self._listener.stop(self._grace))
        await asyncio.wait([stopping], timeout=min(self._grace, _FINAL_SEND_SECONDS))
        if not stopping.done():
            # The remaining streams belong to health and reflection, which end only when they are cancelled.
            await self._listener.stop(0)
        await stopping
        await cancel(self._limiting)


def _max_concurrent_rpcs(limits: LimitSettings) -> int:
    kinds = len(get_args(Streams))
    return limits.calls + kinds * limits.watches + (1 + kinds) * limits.unauthenticated_calls + REJECTION_HEADROOM


def _max_connections() -> int:
    """Return the limit on connections: with all files open, neither HTTP nor Redis could be reached."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return int(files * UNRESERVED_PART) if files != resource.RLIM_INFINITY else _UNLIMITED_CONNECTIONS


def _options(settings: GrpcSettings, *, shared_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        # Calls whose handler has not started; gRPC resets excess calls without details. Its defaults would do so at
        # random from a third of this number.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_allowed_incoming_connections", _max_connections()),
        # Otherwise gRPC answers each message with a ping, to measure the bandwidth: as many packets as the messages of
        # agents that send one every few seconds. gRPC opens the window of a message that it is reading anyway.
        ("grpc.http2.bdp_probe", 0),
        # Two servers sharing a port by accident would each receive half of the calls.
        ("grpc.so_reuseport", int(shared_port)),
        # Server pings detect peers that vanished without closing their connection.
        ("grpc.keepalive_time_ms", settings.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", settings.keepalive_timeout_ms),
        # Agents ping to keep idle connections open through NATs and load balancers.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", settings.min_ping_interval_ms),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", settings.min_ping_interval_ms),
    ]
