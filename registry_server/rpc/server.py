"""``RpcServer``: the gRPC server and its handlers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias, cast

import grpc
import structlog
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.config import GrpcSettings, LimitSettings, LogSettings
from registry_server.errors import ConfigurationError
from registry_server.instrumentation.request_context import REQUEST_CONTEXT, REQUEST_ID_HEADER, RequestContext
from registry_server.instrumentation.tracing import Tracer
from registry_server.registry import ServiceRegistry
from registry_server.rpc.builtin import HEALTH, health_handlers, reflection_handlers
from registry_server.rpc.calls import RpcMethod, request_context_of
from registry_server.rpc.codec import Context, parse
from registry_server.rpc.drain import Drain
from registry_server.rpc.gate import RpcGate
from registry_server.rpc.listener import Listener
from registry_server.rpc.readers import SlowReaders, current_call
from registry_server.rpc.service import RegistryRpc
from registry_server.rpc.status import code_of, status_of, trailers_of
from registry_server.rpc.tls import server_credentials
from registry_server.rpc.traces import with_span
from registry_server.runtime.tasks import cancel
from registry_server.security.guard import Guard, Session
from registry_server.security.limits import CallSlot
from registry_server.security.permissions import RPCS
from registry_server.security.tls import Certificates

SERVICE: Final = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name

_FINAL_SEND_SECONDS: Final = 0.1
"""Time for gRPC to send the last answers and health updates before remaining streams are cancelled."""
REJECTION_HEADROOM: Final = 1_000
"""RPCs that gRPC admits above our limit, so that excess callers receive a detailed error."""
_MAX_PENDING_CALLS: Final = 3_000
"""Calls that gRPC queues before their handler starts, about one second of work; beyond it, callers time out first."""
_MAX_UNCOUNTED_ANSWER_BYTES: Final = 64 << 10
"""Larger answers are counted until the client has read them; smaller ones fit in the network buffers."""

_Unary: TypeAlias = Callable[[bytes, Context], Awaitable[bytes]]
_CachedAnswer: TypeAlias = Callable[[bytes], bytes | None]
"""Returns the cached answer to a serialised request, if there is one."""

log = structlog.get_logger(__name__)


class RpcServer:
    """Serves ``RegistryService``, ``grpc.health.v1`` and reflection."""

    def __init__(
        self,
        registry: ServiceRegistry,
        settings: GrpcSettings,
        *,
        guard: Guard,
        limits: LimitSettings,
        certificates: Certificates | None,
        shared_port: bool = False,
        logs: LogSettings | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Create the server and its handlers; nothing listens yet.

        Args:
            registry: The use cases.
            settings: Address and message limits.
            guard: Admits every call.
            limits: Limits on concurrent calls, from which gRPC's own limit is computed.
            certificates: Certificates for TLS; ``None`` = plaintext.
            shared_port: Whether other processes listen on the same port.
            logs: Which calls to log; by default those that end with an error.
            tracer: Records a span for each call; ``None`` = no tracing.
        """
        self._settings = settings
        self._certificates = certificates
        self._drain = Drain()
        self._health = health.aio.HealthServicer()
        logs = logs or LogSettings()
        methods = pb.DESCRIPTOR.services_by_name["RegistryService"].methods
        self.methods = {each.name: RpcMethod(each.name, logs, streams=each.server_streaming) for each in methods}
        """Counters of each RPC, by name."""
        self.readers = SlowReaders(settings.write_timeout_ms / 1000)
        """Calls that wait for their client to read."""
        self._disconnecting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        rpc = RegistryRpc(registry, self._drain, guard, self.readers)
        verifies_clients = certificates is not None and certificates.current().client_ca is not None
        gate = RpcGate(guard, certificates=verifies_clients)
        handlers = [
            grpc.method_handlers_generic_handler(
                SERVICE, _handlers(rpc, _CallHooks(self._drain, gate, self.readers), self.methods, tracer)
            ),
            health_handlers(self._health, gate),
        ]
        if settings.reflection:
            handlers.append(reflection_handlers((SERVICE, HEALTH, reflection.SERVICE_NAME), gate))

        def make_server() -> grpc.aio.Server:
            return grpc.aio.server(
                handlers=tuple(handlers),
                options=_options(settings, shared_port=shared_port),
                # gRPC rejects excess calls without details, but before it reads their requests; our own limits only see
                # complete requests.
                maximum_concurrent_rpcs=limits.calls + 2 * limits.watches + REJECTION_HEADROOM,
            )

        self._listener = Listener(make_server, self._bind)

    async def start(self) -> str:
        """Start serving and return the address with the actual port.

        Raises:
            ConfigurationError: Listening on the address failed.
        """
        address = self._settings.address
        await self.set_serving(serving=False)
        self._disconnecting = asyncio.create_task(self.readers.run(), name="slow-readers")
        try:
            return await self._listener.start(address)
        except RuntimeError as error:
            raise ConfigurationError(f"grpc.address: cannot listen on {address}; is it in use?") from error

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        if self._certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(self._certificates))

    async def set_serving(self, *, serving: bool) -> None:
        """Set the status that ``grpc.health.v1`` reports."""
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def begin_drain(self, grace: float) -> None:
        """Stop accepting connections and calls; calls in flight have ``grace`` seconds.

        Return once clients were notified. Without this notice they would reopen ended streams on the same connection,
        where gRPC resets them without a reason.
        """
        await self._health.enter_graceful_shutdown()
        self._stopping = asyncio.create_task(self._listener.stop(grace), name="gRPC stop")
        await asyncio.sleep(min(grace, _FINAL_SEND_SECONDS))

    async def drain(self, grace: float) -> None:
        """End streams, let calls in flight finish, and cancel the remaining ones after ``grace`` seconds."""
        self._drain.begin()
        if not await self._drain.wait_idle(grace):
            log.warning("calls cancelled at shutdown", grace_seconds=grace)
        stopping = self._stopping or asyncio.create_task(self._listener.stop(grace))
        await asyncio.wait([stopping], timeout=min(grace, _FINAL_SEND_SECONDS))
        if not stopping.done():
            # The remaining streams belong to health and reflection, which end only when they are cancelled.
            await self._listener.stop(0)
        await stopping
        if self._disconnecting is not None:
            await cancel([self._disconnecting])


class _CallHooks(NamedTuple):
    """Objects that every handler reports to."""

    drain: Drain
    gate: RpcGate
    readers: SlowReaders


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


def _handlers(
    rpc: RegistryRpc,
    hooks: _CallHooks,
    counters: Mapping[str, RpcMethod],
    tracer: Tracer | None,
) -> "dict[str, grpc.RpcMethodHandler[bytes, bytes]]":
    raw: dict[str, _Unary] = {"GetService": rpc.get_service, "DiscoverServices": rpc.discover_services}
    cached: dict[str, _CachedAnswer] = {
        "GetService": rpc.cached_service,
        "DiscoverServices": rpc.cached_page,
    }
    decoded: dict[str, tuple[Callable[..., Awaitable[Message]], type[Message]]] = {
        "RegisterService": (rpc.register_service, pb.RegisterServiceRequest),
        "BatchRegisterServices": (rpc.batch_register_services, pb.BatchRegisterServicesRequest),
        "UpdateService": (rpc.update_service, pb.UpdateServiceRequest),
        "UnregisterService": (rpc.unregister_service, pb.UnregisterServiceRequest),
        "GetServiceHealth": (rpc.get_service_health, pb.GetServiceHealthRequest),
        "ReportServiceHealth": (rpc.report_service_health, pb.ReportServiceHealthRequest),
        "CheckServiceHealth": (rpc.check_service_health, pb.CheckServiceHealthRequest),
        "Heartbeat": (rpc.heartbeat, pb.HeartbeatRequest),
        "ListCapabilities": (rpc.list_capabilities, pb.ListCapabilitiesRequest),
        "GetStats": (rpc.get_stats, pb.GetStatsRequest),
        "GetRegistryHealth": (rpc.get_registry_health, pb.GetRegistryHealthRequest),
        "Cleanup": (rpc.cleanup, pb.CleanupRequest),
    }
    methods = raw | {name: _decoding(method, kind) for name, (method, kind) in decoded.items()}
    unary = {name: _unary_handler(call, hooks, counters[name], cached.get(name)) for name, call in methods.items()}
    keep_alive = _stream_handler(rpc.keep_alive, hooks, counters["KeepAlive"], watches=False)
    watch_events = _stream_handler(rpc.watch_events, hooks, counters["WatchEvents"], watches=True)
    if tracer is not None:
        unary = {name: with_span(handler, name, tracer) for name, handler in unary.items()}
        keep_alive = with_span(keep_alive, "KeepAlive", tracer)
        watch_events = with_span(watch_events, "WatchEvents", tracer)
    return {
        **{name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in unary.items()},
        "KeepAlive": grpc.stream_stream_rpc_method_handler(keep_alive),
        "WatchEvents": grpc.unary_stream_rpc_method_handler(watch_events),
    }


def _decoding(method: Callable[..., Awaitable[Message]], kind: type[Message]) -> _Unary:
    async def handler(wire: bytes, context: Context) -> bytes:
        if REQUEST_CONTEXT.get() is None:  # each call runs in its own task, so the variable needs no reset
            REQUEST_CONTEXT.set(request_context_of(context))
        return (await method(parse(kind, wire), context)).SerializeToString()

    return handler


def _unary_handler(call: _Unary, hooks: _CallHooks, method: RpcMethod, cached: _CachedAnswer | None) -> Any:
    drain, gate, readers = hooks
    permission, in_flight = RPCS[method.name], gate.guard.in_flight

    async def handler(wire: bytes, context: Context) -> bytes:
        drain.call_started()
        started, code, request_context = time.perf_counter(), "OK", None
        slot, large = CallSlot(in_flight), False
        try:
            slot.acquire(len(wire))
            if method.logs_all:
                request_context = request_context_of(context)
                REQUEST_CONTEXT.set(request_context)
                context.set_trailing_metadata(((REQUEST_ID_HEADER, request_context.request_id),))
            # A known caller and a cached answer need no coroutine: less code to run with cold processor caches.
            if gate.admit_known(context, permission) is None:
                await gate.admit(context, permission)
            answer = cached(wire) if cached is not None else None
            if answer is None:
                answer = await call(wire, context)
            if len(answer) > _MAX_UNCOUNTED_ANSWER_BYTES:
                slot.hold_bytes(len(answer))
                large = True
                _release_after_read(slot, context, readers)
            return answer  # noqa: TRY300 - an else branch would separate it from its comment above
        except Exception as error:  # noqa: BLE001 - the one place that maps errors to status
            answer = b""  # release it before the client has read the error
            status = status_of(error)
            request_context = request_context or REQUEST_CONTEXT.get() or request_context_of(context)
            code = code_of(status).name
            await _abort(context, status, request_context)
        except asyncio.CancelledError:  # the client left, or its deadline passed
            code = "CANCELLED"
            raise
        finally:
            if not large:
                slot.release()
            drain.call_ended()
            method.call_ended(code, started, context, request_context)

    return handler


def _release_after_read(slot: CallSlot, context: Context, readers: SlowReaders) -> None:
    """Release a call once the client has read its answer; start the time limit for that."""
    sending = current_call()
    readers.write_started(sending)

    def sent(_: Context) -> None:
        readers.write_finished(sending)
        slot.release()

    context.add_done_callback(cast("Any", sent))  # types-grpcio declares its callback protocol as a class


def _stream_handler(
    call: Callable[[Any, Context, Session], Awaitable[None]],
    hooks: _CallHooks,
    method: RpcMethod,
    *,
    watches: bool,
) -> Any:
    drain, gate, readers = hooks
    permission = RPCS[method.name]

    async def handler(request: Any, context: Context) -> None:
        drain.call_started()
        method.in_flight += 1
        started, code, request_context = time.perf_counter(), "OK", request_context_of(context)
        task = current_call()
        if method.logs_all:
            context.set_trailing_metadata(((REQUEST_ID_HEADER, request_context.request_id),))
        try:
            identity = await gate.admit(context, permission)
            with gate.session(context, identity, permission, watches=watches) as session:
                await call(request, context, session)
        except Exception as error:  # noqa: BLE001 - as above
            status = status_of(error)
            code = code_of(status).name
            await _abort(context, status, request_context)
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            readers.write_finished(task)
            drain.call_ended()
            method.in_flight -= 1
            method.call_ended(code, started, context, request_context)

    return handler


async def _abort(context: Context, status: Status, request_context: RequestContext) -> NoReturn:
    trailers: tuple[tuple[str, str | bytes], ...] = (
        *trailers_of(status),
        (REQUEST_ID_HEADER, request_context.request_id),
    )
    await context.abort(code_of(status), status.message, trailers)
