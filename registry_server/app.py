"""The composition root: builds the parts, starts them and drains them. No other module constructs parts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple, TypeAlias

import structlog

from registry_server.admission import Admission, Transport
from registry_server.catalog import ChangeBudgets, Discovery, Loads, Replica
from registry_server.config import EMBEDDED, Settings
from registry_server.errors import ConfigurationError, ShuttingDown, StoreUnavailable
from registry_server.gateway import HttpServer
from registry_server.health import (
    HealthEvaluator,
    HealthMonitor,
    HealthReports,
    LeaseSweeper,
    Maintenance,
    Membership,
    ResultWriter,
    SelfPreservation,
)
from registry_server.instrumentation.audit import Audit
from registry_server.instrumentation.problems import Problems
from registry_server.instrumentation.samples import Samples
from registry_server.instrumentation.tracing import Tracer
from registry_server.parts import Parts
from registry_server.probes import ProbeProcess, WorkerSetup
from registry_server.registry import ServiceRegistry
from registry_server.replication import Follower, Reconciler, Repairer, Writes
from registry_server.rpc import RpcServer
from registry_server.runtime.clock import system_clock
from registry_server.runtime.tasks import cancel, first_error
from registry_server.security.egress import EgressPolicy
from registry_server.security.exposure import check_exposure
from registry_server.security.guard import Guard
from registry_server.security.identity import current_identity
from registry_server.security.tls import Certificates
from registry_server.store import RedisStore, RedisTls
from registry_server.store.embedded import EmbeddedRedis, check_data_dir, disk_of
from registry_server.telemetry.metrics import Metrics
from registry_server.watch import WatchHub, WatchLimits

MetricsText: TypeAlias = Callable[[], Awaitable[bytes]]
"""Returns metrics in the text format of Prometheus."""

log = structlog.get_logger(__name__)


class WorkerContext(NamedTuple):
    """Set in a process that shares its ports with other workers."""

    number: int
    """Number of this worker, counted from 1."""
    join_metrics: Callable[[MetricsText], MetricsText]
    """Turns the metrics of this worker into those of all workers."""


class Serving(NamedTuple):
    """A server that accepts calls."""

    parts: Parts
    guard: Guard
    """Admits calls; ``reload`` reads the policy again."""
    grpc_address: str
    """HOST:PORT with the actual port, or ``unix:PATH``."""
    http_address: str
    """HOST:PORT with the actual port."""


@asynccontextmanager
async def serving(settings: Settings, *, worker: WorkerContext | None = None) -> AsyncIterator[Serving]:
    """Start everything; drain on exit.

    Calls are accepted immediately. Until the catalog is loaded they fail with UNAVAILABLE and health is NOT_SERVING.

    Args:
        settings: All settings.
        worker: Set if other processes listen on the same ports.

    Raises:
        ConfigurationError: The server cannot start with these settings.
    """
    check_exposure(settings)
    guard = Guard(settings.security, settings.limits)
    guard.log_limits(settings.limits)
    tls = settings.tls.cert_file is not None
    shared = worker is not None
    optional = settings.tls.http_client_certificates == "optional"
    async with open_parts(settings) as parts:
        rpc = RpcServer(
            parts.registry,
            settings.grpc,
            admission=Admission(guard, settings.log, parts.tracer),
            limits=settings.limits,
            grace=settings.shutdown.grace_seconds,
            certificates=Certificates(settings.tls) if tls else None,
            shared_port=shared,
        )
        metrics = Metrics(parts, guard.all_in_flight, {"worker": str(worker.number)} if worker else {})
        http = HttpServer(
            parts.registry,
            settings.http,
            metrics=worker.join_metrics(metrics.text) if worker else metrics.text,
            admission=Admission(guard, settings.log, parts.tracer),
            grace=settings.shutdown.grace_seconds,
            certificates=Certificates(settings.tls, optional=optional) if tls else None,
            shared_port=shared,
            problems=parts.problems,
            needs_credential=settings.security.policy_file is not None,
        )
        metrics.add_transports(rpc, http)
        ready = asyncio.create_task(_after(parts.loaded, partial(rpc.set_serving, serving=True)), name="readiness")
        transports: list[Transport] = [rpc, http]
        try:
            grpc_address, http_address = [await each.start() for each in transports]
            yield Serving(parts, guard, grpc_address, http_address)
        finally:
            ready.cancel()
            for transport in reversed(transports):
                await transport.begin_drain()
            parts.hub.drain()
            for transport in transports:
                await transport.drain()
            ended = rpc.counters.ended_by_drain
            log.info(
                "drained",
                watches=parts.hub.counters.ended[ShuttingDown.reason],
                keep_alive_streams=ended.pop("KeepAlive", 0),
                refused_calls=ended.total() - ended["WatchEvents"],
            )
            await guard.close()


@asynccontextmanager
async def open_parts(
    settings: Settings, make_registry: Callable[..., ServiceRegistry] = ServiceRegistry
) -> AsyncIterator[Parts]:
    """Build and start everything below the transports; stop it on exit.

    Args:
        settings: All settings.
        make_registry: Creates the registry from its parts.

    Raises:
        ConfigurationError: The registry cannot start with these settings.
    """
    async with AsyncExitStack() as stack:
        url, problems = settings.redis.url.get_secret_value(), Problems()
        if url == EMBEDDED:
            embedded = await stack.enter_async_context(EmbeddedRedis(settings.data_dir, problems=problems))
            url = embedded.url
            log.info("embedded Redis started", version=embedded.version, data_dir=str(settings.data_dir))
        else:
            log.info("using Redis", url=settings.redis.safe_url)
        tracer = await stack.enter_async_context(_tracing()) if settings.trace.enabled else None
        store = _redis_store(settings, url, problems, tracer)
        stack.push_async_callback(store.close)
        audit = Audit(enabled=settings.log.audit != "off", identity=lambda: current_identity.get().name)
        parts = _build(settings, store, audit, tracer, make_registry, problems)
        sweeper = LeaseSweeper(
            store,
            interval=settings.lease.sweep_interval_ms / 1000,
            restore=parts.registry.restore_documents,
            applied_position=lambda: parts.replica.position,
            audit=audit,
            compare_sizes=parts.reconciler.compare_sizes,
        )
        stack.enter_context(first_error(ConfigurationError))
        async with asyncio.TaskGroup() as group:
            work: dict[str, Callable[[], Awaitable[None]]] = {
                "follower": parts.follower.run,
                "primary_watch": store.watch_primary,
                "lease_sweeper": partial(_after, parts.loaded, sweeper.run),
                "reconciler": parts.reconciler.run,
                "samples": parts.samples.run,
                "loads": partial(_after, parts.loaded, partial(parts.loads.run, store)),
                "foreign_documents": partial(
                    _after, parts.loaded, partial(_report_foreign_documents, store, parts.replica, settings)
                ),
            }
            if settings.health_check.enabled:
                work["first_probes"] = partial(_after, parts.loaded, parts.registry.start_health_monitoring)
            tasks = [group.create_task(problems.keep_running(name, run), name=name) for name, run in work.items()]
            try:
                yield parts
            finally:
                await cancel(tasks)
                await parts.monitor.stop()


async def _report_foreign_documents(store: RedisStore, replica: Replica, settings: Settings) -> None:
    """Log how to import the services of the OSSA reference implementation, if an empty registry starts on its Redis."""
    # Redis may not permit the scan, which the registry does not need otherwise.
    with suppress(StoreUnavailable):
        if not replica.records and await store.reader.holds_foreign_documents():
            prefix = settings.redis.key_prefix
            command = f"ossa-registry import ossa --redis URL --key-prefix {prefix} --dry-run"
            log.warning("documents of the OSSA reference implementation found", key_prefix=prefix, command=command)


async def check(settings: Settings) -> str:
    """Verify that a server can start with these settings; serve nothing, and change no data.

    An embedded Redis is not started, because a server may be running with the same settings.

    Returns:
        The Redis that the server would use.

    Raises:
        ConfigurationError: The server cannot start with these settings.
        StoreUnavailable: Redis does not answer.
    """
    check_exposure(settings)
    await Guard(settings.security, settings.limits).close()
    if settings.tls.cert_file is not None:
        Certificates(settings.tls)
    url = settings.redis.url.get_secret_value()
    if url == EMBEDDED:
        return await check_data_dir(settings.data_dir)
    store = _redis_store(settings, url, Problems(), None)
    try:
        await store.open()
    finally:
        await store.close()
    return settings.redis.safe_url


def _redis_store(settings: Settings, url: str, problems: Problems, tracer: Tracer | None) -> RedisStore:
    return RedisStore(
        url,
        key_prefix=settings.redis.key_prefix,
        timeout=settings.redis.timeout_ms / 1000,
        events_max_length=settings.redis.events_max_length,
        events_max_age=settings.redis.events_max_age,
        sweep_interval=settings.lease.sweep_interval_ms / 1000,
        tls=RedisTls(settings.redis.tls_ca_file, settings.redis.tls_cert_file, settings.redis.tls_key_file),
        tracer=tracer,
        wait_replicas=settings.redis.wait_replicas,
        wait_timeout=settings.redis.wait_timeout_ms / 1000,
        problems=problems,
        disk=disk_of(url, settings.data_dir),
    )


@asynccontextmanager
async def _tracing() -> AsyncIterator[Tracer]:
    """Open a tracer; on exit, send its pending spans."""
    try:
        from registry_server.telemetry.otel import OtelTracer  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise ConfigurationError("trace.enabled: needs OpenTelemetry: pip install 'ossa-registry[otel]'") from error
    tracer = OtelTracer()
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.close)


def _build(
    settings: Settings,
    store: RedisStore,
    audit: Audit,
    tracer: Tracer | None,
    make_registry: Callable[..., ServiceRegistry],
    problems: Problems,
) -> Parts:
    """Construct the parts; nothing runs yet."""
    replica = Replica(
        settings.redis.events_max_length,
        history_seconds=settings.watch.history_seconds,
        budgets=ChangeBudgets(settings.limits.change_bytes_per_second),
    )
    replica.on_applied.append(lambda change: store.retention.add_event(change.revision, change.at_ms, change.size))
    discovery = Discovery(replica)
    hub = WatchHub(replica, discovery, WatchLimits(settings.watch.buffer_events, settings.watch.buffer_bytes))
    loads = Loads(replica, default_ttl=settings.service_ttl_seconds, clock=system_clock)
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
        on_resync=hub.prepare_resync,
        repairer=Repairer(store, replica, default_ttl=settings.service_ttl_seconds) if settings.redis.repair else None,
        problems=problems,
    )
    reconciler = Reconciler(store, replica, follower, default_ttl=settings.service_ttl_seconds, problems=problems)
    writes = Writes(store, replica, follower, default_ttl=settings.service_ttl_seconds, reconciler=reconciler)
    maintenance = Maintenance(store=store, writes=writes, clock=system_clock)
    checks = settings.health_check
    results = ResultWriter(store)
    self_preservation = SelfPreservation(
        share=checks.self_preservation_percent / 100,
        min_failures=checks.self_preservation_min_failures,
        max_seconds=checks.self_preservation_max_seconds,
    )
    monitor = HealthMonitor(
        replica=replica,
        prober=ProbeProcess(
            WorkerSetup(
                checks.allowed_networks,
                checks.denied_networks,
                checks.concurrency,
                settings.log.level,
                settings.log.format,
            )
        ),
        membership=Membership(store, period=checks.member_period_ms / 1000),
        evaluator=HealthEvaluator(
            replica=replica,
            writes=writes,
            results=results,
            maintenance=maintenance,
            self_preservation=self_preservation,
            connection_since=follower.connection_since,
            clock=system_clock,
        ),
        results=results,
        settings=checks,
        problems=problems,
    )
    registry = make_registry(
        store=store,
        replica=replica,
        loads=loads,
        discovery=discovery,
        hub=hub,
        follower=follower,
        writes=writes,
        monitor=monitor,
        reports=HealthReports(
            store=store,
            follower=follower,
            writes=writes,
            results=results,
            maintenance=maintenance,
            clock=system_clock,
        ),
        maintenance=maintenance,
        egress=EgressPolicy(checks.allowed_networks, checks.denied_networks),
        audit=audit,
        clock=system_clock,
    )
    samples = Samples(store.sample_memory)
    return Parts(
        registry,
        hub,
        follower,
        reconciler,
        monitor,
        store,
        discovery,
        replica,
        loads,
        writes,
        samples,
        tracer,
        problems,
        loaded,
    )


async def _after(event: asyncio.Event, work: Callable[[], Awaitable[None]]) -> None:
    await event.wait()
    await work()
