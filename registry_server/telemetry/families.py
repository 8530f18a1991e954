"""Metrics made of counters, one function for each concern. Labels have few values, none of them a client's."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ossa.registry.v1.registry_service_pb2 import RegistryStats
from registry_server.catalog import Replica, registry_stats
from registry_server.gateway.middleware import Route
from registry_server.health import HealthMonitor
from registry_server.instrumentation.counters import CacheCounters, Histogram
from registry_server.probes import OutcomeKind
from registry_server.replication import Follower, Writes
from registry_server.replication.follower import FOLLOWER_STATES
from registry_server.replication.repair import REPAIR_OUTCOMES
from registry_server.rpc.calls import RpcMethod
from registry_server.rpc.readers import SlowReaders
from registry_server.security.limits import InFlight
from registry_server.store import RedisStore
from registry_server.telemetry.samples import Samples
from registry_server.watch import WATCH_ENDS, WATCH_STARTS, WatchHub

PREFIX: Final = "ossa_registry_"
# A counter that begins at its first error looks to Prometheus as if it had always stood there.
_FROM_THE_START: Final = {"OK": 0, "INTERNAL": 0, "UNAVAILABLE": 0}


def of_pressure(in_flight: InFlight, hub: WatchHub, writes: Writes, readers: SlowReaders) -> Iterator[Metric]:
    """How much is under way of what is bounded."""
    yield _gauge("calls_in_flight", "Calls of gRPC and REST that are under way", in_flight.calls)
    yield _gauge(
        "calls_in_flight_bytes", "Bytes of their requests and of answers that wait to be read", in_flight.bytes
    )
    yield _counter("calls_rejected", "Calls that were refused since too much was under way", in_flight.rejected)
    yield _counter(
        "slow_readers_disconnected",
        "Calls and streams that were cut since their client did not read",
        readers.disconnected,
    )
    yield _gauge("writes_in_flight", "Writes that wait for their turn or for the store", writes.in_flight)
    yield _gauge("snapshot_services", "Services in the snapshots that are being sent", hub.snapshot_records)


def of_rpc(methods: Mapping[str, RpcMethod]) -> Iterator[Metric]:
    """What is counted of gRPC."""
    requests = CounterMetricFamily(
        PREFIX + "grpc_requests", "RPCs that ended, by method and status", labels=["method", "code"]
    )
    seconds = _histogram("grpc_request_duration_seconds", "How long RPCs took; without streams", ["method"])
    open_ = GaugeMetricFamily(PREFIX + "grpc_streams", "Streams that are open", labels=["method"])
    for name, method in methods.items():
        for code, count in {**_FROM_THE_START, **method.calls.ended}.items():
            requests.add_metric([name, code], count)
        if method.streams:
            open_.add_metric([name], method.in_flight)
        else:
            _add(seconds, [name], method.calls.seconds)
    yield from (requests, seconds, open_)


def of_http(routes: Mapping[str, Route]) -> Iterator[Metric]:
    """What is counted of HTTP."""
    requests = CounterMetricFamily(
        PREFIX + "http_requests",
        "HTTP requests that were answered, by method, path and status",
        labels=["method", "route", "status"],
    )
    seconds = _histogram("http_request_duration_seconds", "How long HTTP requests took; without streams", ["route"])
    for path, route in routes.items():
        for (method, status), count in route.answers.items():
            requests.add_metric([method, path, str(status)], count)
        _add(seconds, [path], route.seconds)
    yield from (requests, seconds)


def of_caches(discovery: CacheCounters, listing: CacheCounters) -> Iterator[Metric]:
    """How often an answer was at hand."""
    family = CounterMetricFamily(
        PREFIX + "cache_requests", "Queries, by whether the answer was at hand", labels=["cache", "result"]
    )
    for name, counters in (("discovery", discovery), ("listing", listing)):
        family.add_metric([name, "hit"], counters.hits)
        family.add_metric([name, "miss"], counters.misses)
    yield family


def of_store(store: RedisStore, follower: Follower) -> Iterator[Metric]:
    """What is counted of Redis."""
    counters = store.counters
    yield _gauge("store_connected", "Whether Redis answered last time", follower.connected)
    yield _counter("store_connections", "How often Redis was reached, at the start and again", follower.connections)
    yield _gauge("store_waiting_commands", "Commands that wait for their round trip", store.waiting_commands)
    commits = CounterMetricFamily(PREFIX + "commits", "Attempts to commit a change, by outcome", labels=["outcome"])
    for outcome in ("committed", "conflict", "epoch_changed", "refused", "failed"):
        commits.add_metric([outcome], counters.commits[outcome])
    yield commits
    calls = CounterMetricFamily(
        PREFIX + "store_calls", "Scripts that Redis was to run, by outcome", labels=["script", "outcome"]
    )
    seconds = _histogram("store_call_duration_seconds", "How long scripts took, with waiting", ["script"])
    for name, script in counters.scripts.items():
        for how in ("ok", "failed"):
            calls.add_metric([name, how], script.ended[how])
        _add(seconds, [name], script.seconds)
    yield from (calls, seconds)
    connections = GaugeMetricFamily(PREFIX + "redis_connections", "Connections to Redis", labels=["pool", "state"])
    limits = GaugeMetricFamily(PREFIX + "redis_connections_max", "Most connections to Redis", labels=["pool"])
    for name, pool in store.pool_stats().items():
        connections.add_metric([name, "in_use"], pool.in_use)
        connections.add_metric([name, "idle"], pool.idle)
        limits.add_metric([name], pool.max_connections)
    yield from (connections, limits)
    memory = counters.memory
    yield _gauge("redis_memory_bytes", "Memory that Redis uses", memory.used_bytes if memory else None)
    yield _gauge("redis_memory_max_bytes", "Memory that Redis may use; 0 = no bound", memory.max_bytes if memory else None)
    yield _gauge(
        "redis_persistence_ok", "Whether Redis could write to its disk last time", memory.persistence_ok if memory else None
    )


def of_follower(follower: Follower, replica: Replica) -> Iterator[Metric]:
    """How this process follows the store."""
    state = GaugeMetricFamily(PREFIX + "follower_state", "1 for what the follower does now", labels=["state"])
    for name in FOLLOWER_STATES:
        state.add_metric([name], follower.state == name)
    yield state
    yield _gauge("follower_lag_seconds", "Time since this process was level with the store", follower.lag)
    yield _gauge("revision", "Newest revision that this process has applied", replica.revision)
    yield _counter("resyncs", "How often the state was loaded anew because history broke", follower.resyncs)
    yield _counter("epoch_changes", "How often the store began another history", follower.epoch_changes)
    if (repairer := follower.repairer) is not None:
        repairs = CounterMetricFamily(PREFIX + "repairs", "Repairs of the store, by outcome", labels=["outcome"])
        for outcome in REPAIR_OUTCOMES:
            repairs.add_metric([outcome], repairer.counters.repairs[outcome])
        services = CounterMetricFamily(
            PREFIX + "repaired_services", "Services that repairs changed in the store", labels=["result"]
        )
        services.add_metric(["restored"], repairer.counters.restored)
        services.add_metric(["removed"], repairer.counters.removed)
        yield from (repairs, services)
    lag = _histogram("event_lag_seconds", "Time from the commit of a change until it was applied here", [])
    _add(lag, [], follower.event_lag)
    yield lag


def of_watches(hub: WatchHub) -> Iterator[Metric]:
    """What is counted of watches, of both transports."""
    yield _gauge("watchers", "Watches that are open", hub.watchers)
    started = CounterMetricFamily(PREFIX + "watches_started", "Watches that began, by where", labels=["start"])
    for start in WATCH_STARTS:
        started.add_metric([start], hub.counters.started[start])
    ended = CounterMetricFamily(PREFIX + "watches_ended", "Watches that ended, by reason", labels=["reason"])
    for reason in WATCH_ENDS:
        ended.add_metric([reason.lower()], hub.counters.ended[reason])
    yield from (started, ended)
    yield _counter(
        "watch_cursors_expired", "Watches that could not go on at their cursor", hub.counters.cursors_expired
    )
    yield _counter("watch_events", "Changes that were handed to watchers", hub.counters.events)


def of_services(replica: Replica, *, loaded: bool) -> Iterator[Metric]:
    """What is registered, as this process knows it; nothing before it knows."""
    services = GaugeMetricFamily(PREFIX + "services", "Registered services, by status", labels=["status"])
    if loaded:
        for status, count in _statuses(registry_stats(replica)).items():
            services.add_metric([status], count)
    yield services


def of_leases(store: RedisStore) -> Iterator[Metric]:
    """What is counted of leases."""
    counters = store.counters
    yield _gauge("leases", "Services with a lease that ends, as of the newest sweep", counters.active_leases)
    expired = CounterMetricFamily(
        PREFIX + "leases_expired", "Services that this process removed at the end of their lease", labels=["reason"]
    )
    for reason in ("lease_expired", "cleanup"):
        expired.add_metric([reason], counters.expired_services[reason])
    yield expired
    heartbeats = CounterMetricFamily(
        PREFIX + "heartbeats", "Services that sent a heartbeat, by whether they are registered", labels=["result"]
    )
    heartbeats.add_metric(["renewed"], counters.renewed_leases)
    heartbeats.add_metric(["unknown"], counters.unknown_leases)
    yield heartbeats


def of_health(monitor: HealthMonitor) -> Iterator[Metric]:
    """What is counted of health monitoring."""
    counters = monitor.counters
    outcomes = CounterMetricFamily(PREFIX + "probes", "Probes that ended, by their outcome", labels=["outcome"])
    for kind in OutcomeKind:
        outcomes.add_metric([kind.value], counters.outcomes[kind])
    yield outcomes
    yield _counter("probes_late", "Probes that began more than a second after they were due", counters.late)
    lateness = _histogram("probe_lateness_seconds", "How long after it was due a probe began", [])
    _add(lateness, [], counters.lateness)
    yield lateness
    yield _gauge("probed_services", "Services that this process probes", monitor.probed_services)
    yield _gauge("members", "Live processes among which probes are shared out", monitor.members)
    yield _gauge(
        "self_preservation_active",
        "Whether this process sees too many services fail at once and has frozen statuses",
        monitor.self_preservation_active,
    )
    yield _counter(
        "process_pauses",
        "How often this process stood still, so that probes under way did not count",
        monitor.process_pauses,
    )


def of_loop(samples: Samples) -> Iterator[Metric]:
    """How late the event loop is."""
    lag = _histogram("event_loop_lag_seconds", "How late a task had its turn", [])
    _add(lag, [], samples.loop_lag)
    yield lag


def _statuses(counts: RegistryStats) -> dict[str, int]:
    return {
        "healthy": counts.healthy_services,
        "degraded": counts.degraded_services,
        "unhealthy": counts.unhealthy_services,
        "unknown": counts.unknown_services,
        "maintenance": counts.services_in_maintenance,
    }


def _counter(name: str, help_: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, help_, value=value)


def _gauge(name: str, help_: str, value: float | None) -> Metric:
    """A gauge; without a sample where the value is not known."""
    family = GaugeMetricFamily(PREFIX + name, help_, labels=())
    if value is not None:
        family.add_metric((), value)
    return family


def _histogram(name: str, help_: str, labels: list[str]) -> HistogramMetricFamily:
    return HistogramMetricFamily(PREFIX + name, help_, labels=labels)


def _add(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum)
