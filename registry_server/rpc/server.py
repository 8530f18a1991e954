"""``RpcServer``: the gRPC server with everything on it."""

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
from registry_server.rpc.calls import Method, origin_of
from registry_server.rpc.codec import Context, parse
from registry_server.rpc.drain import Drain
from registry_server.rpc.gate import RpcGate
from registry_server.rpc.listener import Listener
from registry_server.rpc.readers import Readers, this_call
from registry_server.rpc.service import RegistryRpc
from registry_server.rpc.status import code_of, status_of, trailers_of
from registry_server.rpc.tls import server_credentials
from registry_server.rpc.traces import traced
from registry_server.runtime.tasks import cancel
from registry_server.security.guard import Guard, Session
from registry_server.security.limits import Call
from registry_server.security.permissions import RPCS
from registry_server.security.tls import Certificates

SERVICE: Final = pb.DESCRIPTOR.services_by_name["RegistryService"].full_name

_FAREWELL: Final = 0.1
"""Seconds for gRPC to send the last answers, and to tell those who watch health, before what is left is cut."""
REJECTION_HEADROOM: Final = 1_000
"""Calls that gRPC takes beside all that our limits allow, so that those who are too many hear it from us."""
_MOST_PENDING: Final = 3_000
"""Calls that have come and wait for their turn: about a second's, and so much later is the first one behind them."""
_LARGE: Final = 64 << 10
"""Bytes of an answer that is counted until it is read; smaller ones fit the buffers on the way to the client."""

_Unary: TypeAlias = Callable[[bytes, Context], Awaitable[bytes]]
_Ready: TypeAlias = Callable[[bytes], bytes | None]
"""Gives the answer to a serialised request if it is at hand."""

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
        """Puts the parts together.

        Args:
            registry: The use cases.
            settings: Where to listen, and limits.
            guard: Stands before every call.
            limits: Those that the guard keeps.
            certificates: For TLS; ``None``: without.
            shared_port: Whether other processes listen on the same port.
            logs: Which calls get a line in the log; by default those that end with an error.
            tracer: Times calls, if they are traced.
        """
        self._settings = settings
        self._certificates = certificates
        self._drain = Drain()
        self._health = health.aio.HealthServicer()
        logs = logs or LogSettings()
        methods = pb.DESCRIPTOR.services_by_name["RegistryService"].methods
        self.methods = {each.name: Method(each.name, logs, streams=each.server_streaming) for each in methods}
        """What is counted of each RPC."""
        self.readers = Readers(settings.write_timeout_ms / 1000)
        """Who is waited for."""
        self._cutting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        rpc = RegistryRpc(registry, self._drain, guard, self.readers)
        shows = certificates is not None and certificates.current().client_ca is not None
        gate = RpcGate(guard, certificates=shows)
        handlers = [
            grpc.method_handlers_generic_handler(
                SERVICE, _handlers(rpc, registry, _Around(self._drain, gate, self.readers), self.methods, tracer)
            ),
            health_handlers(self._health, gate),
        ]
        if settings.reflection:
            handlers.append(reflection_handlers((SERVICE, HEALTH, reflection.SERVICE_NAME), gate))

        def server() -> grpc.aio.Server:
            return grpc.aio.server(
                handlers=tuple(handlers),
                options=_options(settings, shared_port=shared_port),
                # It refuses without a reason, but before it has read a request: we only count what has come in whole.
                maximum_concurrent_rpcs=limits.calls + 2 * limits.watches + REJECTION_HEADROOM,
            )

        self._listener = Listener(server, self._bind)

    async def start(self) -> str:
        """Begins to serve; gives the address with the port that was taken.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        address = self._settings.address
        await self.set_serving(serving=False)
        self._cutting = asyncio.create_task(self.readers.run(), name="readers")
        try:
            return await self._listener.start(address)
        except RuntimeError as error:
            raise ConfigurationError(f"grpc.address: cannot listen on {address}; is it in use?") from error

    def _bind(self, server: grpc.aio.Server, address: str) -> int:
        if self._certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(self._certificates))

    async def set_serving(self, *, serving: bool) -> None:
        """Tells health watchers whether calls can be served."""
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def begin_drain(self, grace: float) -> None:
        """Sends clients elsewhere: takes no more connections or calls; those under way have ``grace`` seconds.

        Returns when clients know. Told so only once their streams have ended, they would open them again on the same
        connection, and what arrives after the stop gRPC resets without a reason.
        """
        await self._health.enter_graceful_shutdown()
        self._stopping = asyncio.create_task(self._listener.stop(grace), name="gRPC stop")
        await asyncio.sleep(min(grace, _FAREWELL))

    async def drain(self, grace: float) -> None:
        """Ends streams, lets calls under way finish, and cuts what is left after ``grace`` seconds."""
        self._drain.begin()
        if not await self._drain.finished(grace):
            log.warning("calls were cut at shutdown", grace_seconds=grace)
        stopping = self._stopping or asyncio.create_task(self._listener.stop(grace))
        await asyncio.wait([stopping], timeout=min(grace, _FAREWELL))
        if not stopping.done():
            # What is left are streams of other services (health, reflection), which end only when they are cut.
            await self._listener.stop(0)
        await stopping
        if self._cutting is not None:
            await cancel([self._cutting])


class _Around(NamedTuple):
    """What stands around every handler."""

    drain: Drain
    gate: RpcGate
    readers: Readers


def _options(settings: GrpcSettings, *, shared_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        # Calls that nobody has looked at yet: what is beyond them gRPC resets, without a reason. By itself it begins at
        # a third of a second's, and at random.
        ("grpc.server.max_pending_requests", _MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MOST_PENDING),
        # Two servers on one port by accident would each get half of the calls.
        ("grpc.so_reuseport", int(shared_port)),
        # Our own pings find peers that are gone without a word.
        ("grpc.keepalive_time_ms", settings.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", settings.keepalive_timeout_ms),
        # Agents ping to keep their connection through NATs and balancers, also while they have nothing to say.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", settings.min_ping_interval_ms),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", settings.min_ping_interval_ms),
    ]


def _handlers(
    rpc: RegistryRpc, registry: ServiceRegistry, around: _Around, of: Mapping[str, Method], tracer: Tracer | None
) -> "dict[str, grpc.RpcMethodHandler[bytes, bytes]]":
    raw: dict[str, _Unary] = {"GetService": rpc.get_service, "DiscoverServices": rpc.discover_services}
    ready: dict[str, _Ready] = {"GetService": registry.ready_service, "DiscoverServices": registry.ready_answer}
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
    methods = raw | {name: _decoded(method, kind) for name, (method, kind) in decoded.items()}
    unary = {name: _unary(call, around, of[name], ready.get(name)) for name, call in methods.items()}
    keep_alive = _stream(rpc.keep_alive, around, of["KeepAlive"], watches=False)
    watch_events = _stream(rpc.watch_events, around, of["WatchEvents"], watches=True)
    if tracer is not None:
        unary = {name: traced(handler, name, tracer) for name, handler in unary.items()}
        keep_alive = traced(keep_alive, "KeepAlive", tracer)
        watch_events = traced(watch_events, "WatchEvents", tracer)
    return {
        **{name: grpc.unary_unary_rpc_method_handler(handler) for name, handler in unary.items()},
        "KeepAlive": grpc.stream_stream_rpc_method_handler(keep_alive),
        "WatchEvents": grpc.unary_stream_rpc_method_handler(watch_events),
    }


def _decoded(method: Callable[..., Awaitable[Message]], kind: type[Message]) -> _Unary:
    async def handler(wire: bytes, context: Context) -> bytes:
        if REQUEST_CONTEXT.get() is None:  # a call has a task of its own: nobody has to take it back
            REQUEST_CONTEXT.set(origin_of(context))
        return (await method(parse(kind, wire), context)).SerializeToString()

    return handler


def _unary(call: _Unary, around: _Around, method: Method, ready: _Ready | None) -> Any:
    drain, gate, readers = around
    permission, calls = RPCS[method.name], gate.guard.in_flight

    async def handler(wire: bytes, context: Context) -> bytes:
        drain.enter()
        began, code, origin = time.perf_counter(), "OK", None
        in_flight, large = Call(calls), False
        try:
            in_flight.begin(len(wire))
            if method.tells_all:
                origin = origin_of(context)
                REQUEST_CONTEXT.set(origin)
                context.set_trailing_metadata(((REQUEST_ID_HEADER, origin.request_id),))
            # Who is known and what is ready take no coroutine: little code, which is mostly cold between two calls.
            if gate.admit_known(context, permission) is None:
                await gate.admit(context, permission)
            answer = ready(wire) if ready is not None else None
            if answer is None:
                answer = await call(wire, context)
            if len(answer) > _LARGE:
                in_flight.hold(len(answer))
                large = True
                _end_once_read(in_flight, context, readers)
            return answer  # noqa: TRY300 - nothing of it is to be tried apart
        except Exception as error:  # noqa: BLE001 - the one place that turns errors into status
            answer = b""  # what is refused must not be held until that is told
            status, origin = status_of(error), origin or REQUEST_CONTEXT.get() or origin_of(context)
            code = code_of(status).name
            await _abort(context, status, origin)
        except asyncio.CancelledError:  # the client has left, or its deadline has passed
            code = "CANCELLED"
            raise
        finally:
            if not large:
                in_flight.end()
            drain.leave()
            method.ended(code, began, context, origin)

    return handler


def _end_once_read(call: Call, context: Context, readers: Readers) -> None:
    """Counts a call until its answer is read, for which its client has a while."""
    sending = this_call()
    readers.begin(sending)

    def sent(_: Context) -> None:
        readers.end(sending)
        call.end()

    context.add_done_callback(cast("Any", sent))  # types-grpcio takes its protocol for a class


def _stream(
    call: Callable[[Any, Context, Session], Awaitable[None]],
    around: _Around,
    method: Method,
    *,
    watches: bool,
) -> Any:
    drain, gate, readers = around
    permission = RPCS[method.name]

    async def handler(request: Any, context: Context) -> None:
        drain.enter()
        method.under_way += 1
        began, code, origin = time.perf_counter(), "OK", origin_of(context)
        task = this_call()
        if method.tells_all:
            context.set_trailing_metadata(((REQUEST_ID_HEADER, origin.request_id),))
        try:
            identity = await gate.admit(context, permission)
            with gate.session(context, identity, permission, watches=watches) as session:
                await call(request, context, session)
        except Exception as error:  # noqa: BLE001 - as above
            status = status_of(error)
            code = code_of(status).name
            await _abort(context, status, origin)
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            readers.end(task)
            drain.leave()
            method.under_way -= 1
            method.ended(code, began, context, origin)

    return handler


async def _abort(context: Context, status: Status, origin: RequestContext) -> NoReturn:
    trailers: tuple[tuple[str, str | bytes], ...] = (*trailers_of(status), (REQUEST_ID_HEADER, origin.request_id))
    await context.abort(code_of(status), status.message, trailers)
