"""The composition root: builds the parts, starts them, drains them. Nothing else constructs parts."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import structlog

from registry_server import __version__
from registry_server.catalog import Discovery, Follower, Replica, WatchHub, fits_one_message
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
    NetworkPolicy,
    ProbeProcess,
    Protection,
    ResultWriter,
)
from registry_server.registry import ServiceRegistry
from registry_server.rpc import RpcServer
from registry_server.store import RedisStore
from registry_server.store.embedded import EmbeddedRedis
from registry_server.tasks import cancel
from registry_server.telemetry.logs import configure_logging
from registry_server.telemetry.metrics import CONTENT_TYPE, Metrics
from registry_server.writes import Writes

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Parts(NamedTuple):
    """What runs in one process."""

    registry: ServiceRegistry
    hub: WatchHub
    follower: Follower
    monitor: HealthMonitor
    loaded: asyncio.Event
    """Set once the catalog holds the state of the store."""


class Serving(NamedTuple):
    """A server that takes calls."""

    parts: Parts
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

    await serve_until(stop_on_signals(signal.SIGTERM, signal.SIGINT), settings, on_ready=announce)


async def serve_until(
    stop: asyncio.Event, settings: Settings, *, on_ready: Callable[[], None], shared_ports: bool = False
) -> None:
    """Serves until it is told to stop, then drains.

    Args:
        stop: Set when it is to end.
        settings: All of them.
        on_ready: Called once calls are taken and the catalog is loaded.
        shared_ports: Whether other processes listen on the same ports.

    Raises:
        ConfigurationError: It cannot be served as it is configured.
    """
    failure: BaseException | None = None
    try:
        async with serving(settings, shared_ports=shared_ports) as server:
            if await _either(server.parts.loaded, stop):
                on_ready()
            await stop.wait()
            log.info("draining", grace_seconds=settings.shutdown.grace_seconds)
        log.info("stopped")
    except* ConfigurationError as group:  # from any of the tasks
        failure = first_error(group)
    if failure is not None:
        raise failure


@asynccontextmanager
async def serving(settings: Settings, *, shared_ports: bool = False) -> AsyncIterator[Serving]:
    """Starts everything; drains on leaving.

    Calls are taken at once; until the catalog is loaded they are answered with UNAVAILABLE and health says NOT_SERVING.

    Args:
        settings: All of them.
        shared_ports: Whether other processes listen on the same ports.

    Raises:
        ConfigurationError: It cannot be served as it is configured; also within an ``ExceptionGroup``.
    """
    async with open_parts(settings) as parts:
        rpc = RpcServer(parts.registry, settings.grpc, shared_port=shared_ports)
        metrics = Metrics(parts.monitor)
        http = HttpServer(
            parts.registry,
            settings.http,
            metrics=metrics.text,
            metrics_type=CONTENT_TYPE,
            grace=settings.shutdown.grace_seconds,
            shared_port=shared_ports,
        )
        ready = asyncio.create_task(_after(parts.loaded, partial(rpc.set_serving, serving=True)), name="readiness")
        try:
            grpc_address = await rpc.start()
            log.info("gRPC listens", address=grpc_address, reflection=settings.grpc.reflection)
            http_address = await http.start()
            log.info("HTTP listens", address=http_address, health=f"http://{http_address}/health")
            yield Serving(parts, grpc_address, http_address)
        finally:
            ready.cancel()
            http.begin_drain()
            parts.hub.drain()
            await rpc.drain(settings.shutdown.grace_seconds)
            await http.stop()


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
        store = RedisStore(
            url,
            key_prefix=settings.redis.key_prefix,
            timeout=settings.redis.timeout_ms / 1000,
            events_max_length=settings.redis.events_max_length,
            sweep_interval=settings.lease.sweep_interval_ms / 1000,
            wait_replicas=settings.redis.wait_replicas,
            wait_timeout=settings.redis.wait_timeout_ms / 1000,
        )
        stack.push_async_callback(store.close)
        parts = _build(settings, store)
        sweeper = LeaseSweeper(
            store, interval=settings.lease.sweep_interval_ms / 1000, restore=parts.registry.restore_documents
        )
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(parts.follower.run(), name="follower"),
                group.create_task(store.watch_primary(), name="primary-watch"),
                group.create_task(_after(parts.loaded, sweeper.run), name="lease-sweeper"),
                group.create_task(parts.monitor.supervise(), name="health-monitor-supervisor"),
            ]
            if settings.health_check.enabled:
                start = _after(parts.loaded, parts.registry.start_health_monitoring)
                tasks.append(group.create_task(start, name="first-probes"))
            try:
                yield parts
            finally:
                await cancel(tasks)
                await parts.monitor.stop()


def _build(settings: Settings, store: RedisStore) -> Parts:
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
        clock=system_clock,
    )
    return Parts(registry, hub, follower, monitor, loaded)


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
