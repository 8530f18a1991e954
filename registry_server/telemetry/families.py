"""Metrics made of figures, one function for each concern. Labels have few values, none of them a client's."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ossa.registry.v1.registry_service_pb2 import RegistryStats
from registry_server.catalog import Follower, Replica, WatchHub, stats
from registry_server.catalog.follower import STATES
from registry_server.catalog.repair import OUTCOMES
from registry_server.catalog.watch import ENDS, STARTS
from registry_server.figures import CacheFigures, Histogram
from registry_server.gateway.middleware import Route
from registry_server.health import HealthMonitor
from registry_server.probes import OutcomeKind
from registry_server.rpc.calls import Method
from registry_server.rpc.readers import Readers
from registry_server.security.limits import InFlight
from registry_server.store import RedisStore
from registry_server.telemetry.samples import Samples
from registry_server.writes import Writes

PREFIX: Final = "ossa_registry_"
# A counter that begins at its first error looks to Prometheus as if it had always stood there.
_FROM_THE_START: Final = {"OK": 0, "INTERNAL": 0, "UNAVAILABLE": 0}


def of_pressure(in_flight: InFlight, hub: WatchHub, writes: Writes, readers: Readers) -> Iterator[Metric]:
    """How much is under way of what is bounded."""
    yield _gauge("calls_under_way", "Calls of gRPC and REST that are under way", in_flight.calls)
    yield _gauge(
        "calls_under_way_bytes", "Bytes of their requests and of answers that wait to be read", in_flight.bytes
    )
    yield _counter("calls_overloaded", "Calls that were refused since too much was under way", in_flight.refused)
    yield _counter("calls_unread", "Calls and streams that were cut since their client did not read", readers.cut)
    yield _gauge("writes_under_way", "Writes that wait for their turn or for the store", writes.under_way)
    yield _gauge("snapshot_services", "Services in the snapshots that are being sent", hub.snapshot_records)


def of_rpc(methods: Mapping[str, Method]) -> Iterator[Metric]:
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
            open_.add_metric([name], method.under_way)
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


def of_caches(discovery: CacheFigures, listing: CacheFigures) -> Iterator[Metric]:
    """How often an answer was at hand."""
    family = CounterMetricFamily(
        PREFIX + "cache_requests", "Queries, by whether the answer was at hand", labels=["cache", "result"]
    )
    for name, figures in (("discovery", discovery), ("listing", listing)):
        family.add_metric([name, "hit"], figures.hits)
        family.add_metric([name, "miss"], figures.misses)
    yield family


def of_store(store: RedisStore, follower: Follower) -> Iterator[Metric]:
    """What is counted of Redis."""
    figures = store.figures
    yield _gauge("store_connected", "Whether Redis answered last time", follower.connected)
    yield _counter("store_connections", "How often Redis was reached, at the start and again", follower.connections)
    yield _gauge("store_waiting_commands", "Commands that wait for their round trip", store.waiting_commands)
    commits = CounterMetricFamily(PREFIX + "commits", "Attempts to commit a change, by outcome", labels=["outcome"])
    for outcome in ("committed", "conflict", "epoch_changed", "refused", "failed"):
        commits.add_metric([outcome], figures.commits[outcome])
    yield commits
    calls = CounterMetricFamily(
        PREFIX + "store_calls", "Scripts that Redis was to run, by outcome", labels=["script", "outcome"]
    )
    seconds = _histogram("store_call_duration_seconds", "How long scripts took, with waiting", ["script"])
    for name, script in figures.scripts.items():
        for how in ("ok", "failed"):
            calls.add_metric([name, how], script.ended[how])
        _add(seconds, [name], script.seconds)
    yield from (calls, seconds)
    connections = GaugeMetricFamily(PREFIX + "redis_connections", "Connections to Redis", labels=["pool", "state"])
    limits = GaugeMetricFamily(PREFIX + "redis_connections_max", "Most connections to Redis", labels=["pool"])
    for name, pool in store.pools().items():
        connections.add_metric([name, "in_use"], pool.in_use)
        connections.add_metric([name, "idle"], pool.idle)
        limits.add_metric([name], pool.most)
    yield from (connections, limits)
    memory = figures.memory
    yield _gauge("redis_memory_bytes", "Memory that Redis uses", memory.used if memory else None)
    yield _gauge("redis_memory_max_bytes", "Memory that Redis may use; 0 = no bound", memory.most if memory else None)
    yield _gauge("redis_saves", "Whether Redis could write to its disk last time", memory.saves if memory else None)


def of_follower(follower: Follower, replica: Replica) -> Iterator[Metric]:
    """How this process follows the store."""
    state = GaugeMetricFamily(PREFIX + "follower_state", "1 for what the follower does now", labels=["state"])
    for name in STATES:
        state.add_metric([name], follower.state == name)
    yield state
    yield _gauge("follower_lag_seconds", "Time since this process was level with the store", follower.lag)
    yield _gauge("revision", "Newest revision that this process has applied", replica.revision)
    yield _counter("resyncs", "How often the state was loaded anew because history broke", follower.resyncs)
    yield _counter("epoch_changes", "How often the store began another history", follower.epoch_changes)
    if (repairer := follower.repairer) is not None:
        repairs = CounterMetricFamily(PREFIX + "repairs", "Repairs of the store, by outcome", labels=["outcome"])
        for outcome in OUTCOMES:
            repairs.add_metric([outcome], repairer.figures.repairs[outcome])
        services = CounterMetricFamily(
            PREFIX + "repaired_services", "Services that repairs changed in the store", labels=["result"]
        )
        services.add_metric(["put_back"], repairer.figures.put_back)
        services.add_metric(["removed_again"], repairer.figures.removed_again)
        yield from (repairs, services)
    lag = _histogram("event_lag_seconds", "Time from the commit of a change until it was applied here", [])
    _add(lag, [], follower.event_lag)
    yield lag


def of_watches(hub: WatchHub) -> Iterator[Metric]:
    """What is counted of watches, of both transports."""
    yield _gauge("watchers", "Watches that are open", hub.watchers)
    started = CounterMetricFamily(PREFIX + "watches_started", "Watches that began, by where", labels=["start"])
    for start in STARTS:
        started.add_metric([start], hub.figures.started[start])
    ended = CounterMetricFamily(PREFIX + "watches_ended", "Watches that ended, by reason", labels=["reason"])
    for reason in ENDS:
        ended.add_metric([reason.lower()], hub.figures.ended[reason])
    yield from (started, ended)
    yield _counter("watch_cursors_expired", "Watches that could not go on at their cursor", hub.figures.cursors_expired)
    yield _counter("watch_events", "Changes that were handed to watchers", hub.figures.events)


def of_services(replica: Replica, *, loaded: bool) -> Iterator[Metric]:
    """What is registered, as this process knows it; nothing before it knows."""
    services = GaugeMetricFamily(PREFIX + "services", "Registered services, by status", labels=["status"])
    if loaded:
        for status, count in _statuses(stats(replica)).items():
            services.add_metric([status], count)
    yield services


def of_leases(store: RedisStore) -> Iterator[Metric]:
    """What is counted of leases."""
    figures = store.figures
    yield _gauge("leases", "Services with a lease that ends, as of the newest sweep", figures.leases)
    expired = CounterMetricFamily(
        PREFIX + "leases_expired", "Services that this process removed at the end of their lease", labels=["reason"]
    )
    for reason in ("lease_expired", "cleanup"):
        expired.add_metric([reason], figures.expired[reason])
    yield expired
    heartbeats = CounterMetricFamily(
        PREFIX + "heartbeats", "Services that sent a heartbeat, by whether they are registered", labels=["result"]
    )
    heartbeats.add_metric(["renewed"], figures.renewed)
    heartbeats.add_metric(["unknown"], figures.unknown)
    yield heartbeats


def of_health(monitor: HealthMonitor) -> Iterator[Metric]:
    """What is counted of health monitoring."""
    figures = monitor.figures
    outcomes = CounterMetricFamily(PREFIX + "probes", "Probes that ended, by their outcome", labels=["outcome"])
    for kind in OutcomeKind:
        outcomes.add_metric([kind.value], figures.outcomes[kind])
    yield outcomes
    yield _counter("probes_late", "Probes that began more than a second after they were due", figures.late)
    lateness = _histogram("probe_lateness_seconds", "How long after it was due a probe began", [])
    _add(lateness, [], figures.lateness)
    yield lateness
    yield _gauge("probed_services", "Services that this process probes", monitor.probed_services)
    yield _gauge("members", "Live processes among which probes are shared out", monitor.members)
    yield _gauge(
        "protection_active",
        "Whether this process sees too many services fail at once and has frozen statuses",
        monitor.protection_active,
    )
    yield _counter(
        "standstills", "How often this process stood still, so that probes under way did not count", monitor.standstills
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
