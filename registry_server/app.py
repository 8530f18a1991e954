"""The composition root: builds the parts, starts them, drains them. Nothing else constructs parts."""

import asyncio
import gc
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import structlog

from registry_server import __version__
from registry_server.audit import Audit
from registry_server.catalog import Discovery, Follower, Repairer, Replica, WatchHub, fits_one_message
from registry_server.clock import system_clock
from registry_server.config import EMBEDDED, Settings
from registry_server.errors import ConfigurationError
from registry_server.gateway import HttpServer
from registry_server.health import (
    HealthMonitor,
    HealthReports,
    Judge,
    LeaseSweeper,
    Membership,
    Protection,
    ResultWriter,
)
from registry_server.listeners import Listeners
from registry_server.probes import NetworkPolicy, ProbeProcess
from registry_server.registry import ServiceRegistry
from registry_server.rpc import RpcServer
from registry_server.scheduling import follow_load
from registry_server.security.exposure import check_exposure
from registry_server.security.guard import Guard
from registry_server.security.identity import current_identity
from registry_server.security.tls import Certificates
from registry_server.store import RedisStore, RedisTls
from registry_server.store.embedded import EmbeddedRedis
from registry_server.tasks import cancel
from registry_server.telemetry.logs import configure_logging
from registry_server.telemetry.metrics import CONTENT_TYPE, Metrics
from registry_server.telemetry.samples import Samples
from registry_server.tracing import Tracer
from registry_server.writes import Writes

T = TypeVar("T")
MetricsText: TypeAlias = Callable[[], Awaitable[bytes]]
"""Gives metrics in the text format of Prometheus."""

ROLL_SIGNAL: Final = signal.SIGUSR2
"""Restarts workers one after the other, as it does with HAProxy's; SIGHUP reads the policy again, which costs nobody a
connection."""
_COLLECT_AFTER: Final = (50_000, 20, 50)
"""Thresholds of the garbage collector: thousands of streams that are woken at once make as many objects, so that with
those of Python it ran several times an event, for a seventh of its time. Cycles, what it is for, hardly arise here."""

log = structlog.get_logger(__name__)


class Team(NamedTuple):
    """Of a process that shares its ports with others."""

    number: int
    """Which of them it is, counted from 1."""
    join_metrics: Callable[[MetricsText], MetricsText]
    """Makes of the metrics of this one those of all."""


class Parts(NamedTuple):
    """What runs in one process."""

    registry: ServiceRegistry
    hub: WatchHub
    follower: Follower
    monitor: HealthMonitor
    store: RedisStore
    discovery: Discovery
    replica: Replica
    writes: Writes
    samples: Samples
    listeners: Listeners
    tracer: Tracer | None
    loaded: asyncio.Event
    """Set once the catalog holds the state of the store."""


class Serving(NamedTuple):
    """A server that takes calls."""

    parts: Parts
    guard: Guard
    """Admits calls; ``reload`` reads the policy again."""
    grpc_address: str
    """HOST:PORT with the port that was taken, or ``unix:PATH``."""
    http_address: str
    """HOST:PORT with the port that was taken."""


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: It cannot be served as it is configured.
    """
    configure_logging(settings.log)
    run_loop(_serve(settings))


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in an event loop of its own, the fastest that there is; gives what it returns."""
    gc.set_threshold(*_COLLECT_AFTER)
    if sys.implementation.name == "cpython":
        import uvloop  # noqa: PLC0415 - only there on CPython

        return uvloop.run(main)
    return asyncio.run(main)


def stop_on_signals(*signals: signal.Signals) -> asyncio.Event:
    """Makes an event that is set by one of these signals; a second one ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def begin_stop() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, begin_stop)
    return stop


async def _serve(settings: Settings) -> None:
    def announce() -> None:
        log.info("ossa-registry serves", version=__version__)

    def refuse_to_roll() -> None:
        log.warning("there are no workers to restart one after the other: restart this process, or set workers")

    asyncio.get_running_loop().add_signal_handler(ROLL_SIGNAL, refuse_to_roll)
    await serve_until(stop_on_signals(signal.SIGTERM, signal.SIGINT), settings, on_ready=announce)


async def serve_until(
    stop: asyncio.Event,
    settings: Settings,
    *,
    on_ready: Callable[[], None],
    team: Team | None = None,
) -> None:
    """Serves until it is told to stop, then drains.

    Args:
        stop: Set when it is to end.
        settings: All of them.
        on_ready: Called once calls are taken and the catalog is loaded.
        team: If other processes listen on the same ports.

    Raises:
        ConfigurationError: It cannot be served as it is configured.
    """
    failure: BaseException | None = None
    scheduling = asyncio.create_task(follow_load(), name="scheduling")
    try:
        async with serving(settings, team=team) as server:
            if settings.security.policy_file is not None:  # else a closed terminal ends it, as it ends any program
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.guard.reload)
            if await _either(server.parts.loaded, stop):
                on_ready()
            await stop.wait()
            log.info("draining", grace_seconds=settings.shutdown.grace_seconds)
        log.info("stopped")
    except* ConfigurationError as group:  # from any of the tasks
        failure = first_error(group)
    finally:
        await cancel([scheduling])
    if failure is not None:
        raise failure


@asynccontextmanager
async def serving(settings: Settings, *, team: Team | None = None) -> AsyncIterator[Serving]:
    """Starts everything; drains on leaving.

    Calls are taken at once; until the catalog is loaded they are answered with UNAVAILABLE and health says NOT_SERVING.

    Args:
        settings: All of them.
        team: If other processes listen on the same ports.

    Raises:
        ConfigurationError: It cannot be served as it is configured; also within an ``ExceptionGroup``.
    """
    check_exposure(settings)
    guard = Guard(settings.security, settings.limits)
    tls = settings.tls.cert_file is not None
    shared = team is not None
    optional = settings.tls.http_client_certificates == "optional"
    async with open_parts(settings) as parts:
        rpc = RpcServer(
            parts.registry,
            settings.grpc,
            guard=guard,
            limits=settings.limits,
            certificates=Certificates(settings.tls) if tls else None,
            shared_port=shared,
            logs=settings.log,
            tracer=parts.tracer,
        )
        metrics = Metrics(
            store=parts.store,
            replica=parts.replica,
            discovery=parts.discovery,
            hub=parts.hub,
            follower=parts.follower,
            monitor=parts.monitor,
            samples=parts.samples,
            writes=parts.writes,
            in_flight=guard.in_flight,
            labels={"worker": str(team.number)} if team else {},
        )
        http = HttpServer(
            parts.registry,
            settings.http,
            metrics=team.join_metrics(metrics.text) if team else metrics.text,
            metrics_type=CONTENT_TYPE,
            grace=settings.shutdown.grace_seconds,
            guard=guard,
            certificates=Certificates(settings.tls, optional=optional) if tls else None,
            shared_port=shared,
            logs=settings.log,
            tracer=parts.tracer,
        )
        metrics.add_transports(rpc, http)
        ready = asyncio.create_task(_after(parts.loaded, partial(rpc.set_serving, serving=True)), name="readiness")
        try:
            grpc_address = await rpc.start()
            log.info("gRPC listens", address=grpc_address, reflection=settings.grpc.reflection, tls=tls)
            http_address = await http.start()
            log.info("HTTP listens", address=http_address, health=f"http{'s' if tls else ''}://{http_address}/health")
            yield Serving(parts, guard, grpc_address, http_address)
        finally:
            ready.cancel()
            http.begin_drain()
            await rpc.begin_drain(settings.shutdown.grace_seconds)
            parts.hub.drain()
            await rpc.drain(settings.shutdown.grace_seconds)
            await http.stop()
            await guard.close()


@asynccontextmanager
async def open_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Builds and starts everything below the transports; ends it on leaving.

    Raises:
        ConfigurationError: It cannot be run as it is configured.
    """
    async with AsyncExitStack() as stack:
        url = settings.redis.url.get_secret_value()
        if url == EMBEDDED:
            embedded = await stack.enter_async_context(EmbeddedRedis(settings.data_dir))
            url = embedded.url
            log.info("embedded Redis started", version=embedded.version, data_dir=str(settings.data_dir))
        else:
            log.info("using Redis", url=settings.redis.safe_url)
        tracer = await stack.enter_async_context(_tracing()) if settings.trace.enabled else None
        store = RedisStore(
            url,
            key_prefix=settings.redis.key_prefix,
            timeout=settings.redis.timeout_ms / 1000,
            events_max_length=settings.redis.events_max_length,
            sweep_interval=settings.lease.sweep_interval_ms / 1000,
            tls=RedisTls(settings.redis.tls_ca_file, settings.redis.tls_cert_file, settings.redis.tls_key_file),
            tracer=tracer,
            wait_replicas=settings.redis.wait_replicas,
            wait_timeout=settings.redis.wait_timeout_ms / 1000,
        )
        stack.push_async_callback(store.close)
        audit = Audit(enabled=settings.log.audit != "off", identity=lambda: current_identity.get().name)
        parts = _build(settings, store, audit, tracer)
        sweeper = LeaseSweeper(
            store,
            interval=settings.lease.sweep_interval_ms / 1000,
            restore=parts.registry.restore_documents,
            seen=lambda: parts.replica.position,
            audit=audit,
        )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(parts.follower.run(), name="follower"),
                group.create_task(store.watch_primary(), name="primary-watch"),
                group.create_task(_after(parts.loaded, sweeper.run), name="lease-sweeper"),
                group.create_task(parts.monitor.supervise(), name="health-monitor-supervisor"),
                group.create_task(parts.samples.run(), name="samples"),
                group.create_task(parts.listeners.run(), name="listeners"),
            ]
            if settings.health_check.enabled:
                start = _after(parts.loaded, parts.registry.start_health_monitoring)
                tasks.append(group.create_task(start, name="first-probes"))
            try:
                yield parts
            finally:
                await cancel(tasks)
                await parts.monitor.stop()


@asynccontextmanager
async def _tracing() -> AsyncIterator[Tracer]:
    """A tracer; what it has not sent yet is sent on leaving."""
    try:
        from registry_server.telemetry.otel import OtelTracer  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise ConfigurationError("trace.enabled: needs OpenTelemetry: pip install 'ossa-registry[otel]'") from error
    tracer = OtelTracer()
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.close)


def _build(settings: Settings, store: RedisStore, audit: Audit, tracer: Tracer | None) -> Parts:
    """Puts the parts together; nothing runs yet."""
    replica = Replica(settings.redis.events_max_length)
    discovery = Discovery(replica)
    hub = WatchHub(
        replica, discovery, buffer_events=settings.watch.buffer_events, buffer_bytes=settings.watch.buffer_bytes
    )
    loaded = asyncio.Event()

    def on_connection(*, connected: bool) -> None:
        discovery.set_stale(stale=not connected)
        if connected:
            loaded.set()

    follower = Follower(
        store,
        replica,
        clock=system_clock,
        on_connection=on_connection,
        on_start_over=hub.start_over,
        fits_one_message=fits_one_message,
        repairer=Repairer(store, replica, default_ttl=settings.service_ttl_seconds) if settings.redis.repair else None,
    )
    writes = Writes(store, replica, follower, default_ttl=settings.service_ttl_seconds)
    checks = settings.health_check
    results = ResultWriter(store)
    protection = Protection(
        share=checks.protection_percent / 100,
        minimum=checks.protection_min_failures,
        longest=checks.protection_max_seconds,
    )
    monitor = HealthMonitor(
        replica=replica,
        prober=ProbeProcess(
            checks.allowed_networks, checks.denied_networks, concurrency=checks.concurrency, logs=settings.log
        ),
        membership=Membership(store, period=checks.member_period_ms / 1000),
        judge=Judge(
            replica=replica,
            writes=writes,
            results=results,
            protection=protection,
            contact=follower.connection_since,
            clock=system_clock,
        ),
        results=results,
        settings=checks,
    )
    listeners = Listeners(replica, most_waiting=settings.watch.buffer_events)
    registry = ServiceRegistry(
        store=store,
        replica=replica,
        discovery=discovery,
        hub=hub,
        follower=follower,
        writes=writes,
        monitor=monitor,
        reports=HealthReports(store=store, follower=follower, writes=writes, results=results, clock=system_clock),
        policy=NetworkPolicy(checks.allowed_networks, checks.denied_networks),
        audit=audit,
        listeners=listeners,
        clock=system_clock,
    )
    return Parts(
        registry, hub, follower, monitor, store, discovery, replica, writes, Samples(store), listeners, tracer, loaded
    )


async def _after(event: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
    await event.wait()
    await work()


async def _either(event: asyncio.Event, stop: asyncio.Event) -> bool:
    """Waits for one of two events; tells whether the first is set."""
    waits = [asyncio.create_task(event.wait()), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return event.is_set()


def first_error(group: BaseExceptionGroup[ConfigurationError]) -> BaseException:
    """The first error in a group, and in the groups in it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
