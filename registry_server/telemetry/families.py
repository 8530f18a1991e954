"""Metric families, built from counters, with one function for each concern.

Labels have few distinct values; text from clients never becomes a label.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ossa.registry.v1.registry_service_pb2 import RegistryStats
from registry_server.catalog import Replica, registry_stats
from registry_server.health import HealthMonitor
from registry_server.instrumentation.counters import CacheCounters, Histogram, TransportCounters
from registry_server.instrumentation.problems import Problems
from registry_server.instrumentation.samples import Samples
from registry_server.probes import OutcomeKind
from registry_server.replication import FOLLOWER_STATES, REPAIR_OUTCOMES, Follower, Writes
from registry_server.security.limits import InFlight
from registry_server.store import COMMIT_OUTCOMES, EXPIRIES, RedisStore
from registry_server.watch import WATCH_ENDS, WATCH_STARTS, WatchHub

_Value = TypeVar("_Value", bound=str)
PREFIX: Final = "ossa_registry_"
# Reported as 0 before the first call: Prometheus cannot see the increase of a series that starts at its first error.
_INITIAL_CODES: Final = {"OK": 0, "INTERNAL": 0, "UNAVAILABLE": 0}


def load_metrics(
    in_flight: Sequence[InFlight], hub: WatchHub, writes: Writes, grpc: TransportCounters
) -> Iterator[Metric]:
    """Yield the current use of bounded resources."""
    calls = sum(each.calls.held for each in in_flight)
    yield _gauge("calls_in_flight", "gRPC and REST calls in flight, without streams", calls)
    yield _gauge(
        "calls_in_flight_bytes",
        "Bytes of large requests in flight and of large responses that are not read yet",
        sum(each.bytes.held for each in in_flight),
    )
    rejected = sum(each.rejected for each in in_flight)
    yield _counter("calls_rejected", "Calls rejected because a limit on calls in flight was reached", rejected)
    yield _counter(
        "slow_readers_disconnected",
        "gRPC watches ended because their client did not read",
        grpc.slow_readers,
    )
    yield _gauge("writes_in_flight", "Writes that wait for their turn or for Redis", writes.in_flight)
    yield _gauge("snapshot_services", "Services in the snapshots that are being sent to watchers", hub.snapshot_records)


def rpc_metrics(counters: TransportCounters) -> Iterator[Metric]:
    """Yield the metrics of gRPC."""
    requests = CounterMetricFamily(
        PREFIX + "grpc_requests", "Finished RPCs, by method and status", labels=["method", "code"]
    )
    seconds = _histograms("grpc_request_duration_seconds", "Duration of RPCs, without streams", ["method"])
    open_ = GaugeMetricFamily(PREFIX + "grpc_streams", "Open streams, by method", labels=["method"])
    for name, calls in counters.calls.items():
        for code, count in {**_INITIAL_CODES, **calls.ended}.items():
            requests.add_metric([name, code], count)
        if name in counters.streams:
            open_.add_metric([name], calls.in_flight)
        else:
            _add_histogram(seconds, [name], calls.seconds)
    yield from (requests, seconds, open_)


def http_metrics(counters: TransportCounters) -> Iterator[Metric]:
    """Yield the metrics of HTTP."""
    requests = CounterMetricFamily(
        PREFIX + "http_requests",
        "Answered HTTP requests, by method, route and status",
        labels=["method", "route", "status"],
    )
    seconds = _histograms(
        "http_request_duration_seconds", "Duration of HTTP requests, without event streams", ["route"]
    )
    for path, calls in counters.calls.items():
        for result, count in calls.ended.items():
            method, status = result.split()
            requests.add_metric([method, path, status], count)
        _add_histogram(seconds, [path], calls.seconds)
    yield from (requests, seconds)


def cache_metrics(caches: Mapping[str, CacheCounters]) -> Iterator[Metric]:
    """Yield the hits and misses of the caches."""
    family = CounterMetricFamily(PREFIX + "cache_requests", "Queries, by cache and result", labels=["cache", "result"])
    for name, counters in caches.items():
        family.add_metric([name, "hit"], counters.hits)
        family.add_metric([name, "miss"], counters.misses)
    yield family


def store_metrics(store: RedisStore, follower: Follower) -> Iterator[Metric]:
    """Yield the metrics of the connection to Redis and of Redis itself."""
    counters = store.counters
    yield _gauge("store_connected", "Whether the last command to Redis succeeded", follower.connected)
    yield _counter(
        "store_connections", "Successful connections to Redis: the first one and reconnections", follower.connections
    )
    yield _gauge("store_waiting_commands", "Commands that wait for their round trip", store.waiting_commands)
    commits = {outcome: counters.commits[outcome] for outcome in COMMIT_OUTCOMES}
    yield _counters("commits", "Attempts to commit a change, by outcome", "outcome", commits)
    calls = CounterMetricFamily(
        PREFIX + "store_calls", "Redis scripts, by script and outcome", labels=["script", "outcome"]
    )
    seconds = _histograms("store_call_duration_seconds", "Duration of Redis scripts, including queueing", ["script"])
    for name, script in counters.scripts.items():
        for outcome in ("ok", "failed"):
            calls.add_metric([name, outcome], script.ended[outcome])
        _add_histogram(seconds, [name], script.seconds)
    yield from (calls, seconds)
    connections = GaugeMetricFamily(PREFIX + "redis_connections", "Connections to Redis", labels=["pool", "state"])
    pools = store.pool_stats()
    for name, pool in pools.items():
        connections.add_metric([name, "in_use"], pool.in_use)
        connections.add_metric([name, "idle"], pool.idle)
    yield connections
    limits = {name: pool.max_connections for name, pool in pools.items()}
    yield _gauges("redis_connections_max", "Maximum number of connections to Redis", "pool", limits)
    memory = counters.memory
    yield _gauge("redis_memory_bytes", "Memory that Redis uses", memory.used_bytes if memory else None)
    yield _gauge(
        "redis_memory_max_bytes",
        "Memory limit of Redis (maxmemory); 0 = unlimited",
        memory.max_bytes if memory else None,
    )
    yield _gauge(
        "redis_persistence_ok",
        "Whether the last attempt of Redis to write to disk succeeded",
        memory.persistence_ok if memory else None,
    )


def follower_metrics(follower: Follower, replica: Replica) -> Iterator[Metric]:
    """Yield the metrics of replication from the store."""
    states = {state: follower.state == state for state in FOLLOWER_STATES}
    yield _gauges("follower_state", "1 for the current state of the follower", "state", states)
    yield _gauge("follower_lag_seconds", "Time since this process was last caught up with Redis", follower.lag)
    yield _gauge("revision", "Newest revision that this process has applied", replica.revision)
    yield _counter("resyncs", "Full reloads of the state because the history was broken", follower.resyncs)
    yield _counter(
        "epoch_changes", "New epochs of the store: Redis was emptied, restored or lost writes", follower.epoch_changes
    )
    if (repairer := follower.repairer) is not None:
        counters = repairer.counters
        repairs = {outcome: counters.repairs[outcome] for outcome in REPAIR_OUTCOMES}
        yield _counters("repairs", "Repairs of Redis, by outcome", "outcome", repairs)
        services = {"restored": counters.restored, "removed": counters.removed}
        help_ = "Services that repairs restored in or removed from Redis"
        yield _counters("repaired_services", help_, "result", services)
    yield _histogram(
        "event_lag_seconds", "Time from the commit of a change until it was applied here", follower.event_lag
    )


def watch_metrics(hub: WatchHub) -> Iterator[Metric]:
    """Yield the metrics of watches of both transports."""
    yield _gauge("watchers", "Open watches", hub.watchers)
    started = {start: hub.counters.started[start] for start in WATCH_STARTS}
    yield _counters("watches_started", "Started watches, by start position", "start", started)
    ended = {reason.lower(): hub.counters.ended[reason] for reason in WATCH_ENDS}
    yield _counters("watches_ended", "Ended watches, by reason", "reason", ended)
    yield _counter(
        "watch_cursors_expired", "Watches that could not resume from their cursor", hub.counters.cursors_expired
    )
    yield _counter("watch_events", "Live changes sent to watchers", hub.counters.events)


def service_metrics(replica: Replica, *, loaded: bool) -> Iterator[Metric]:
    """Yield the number of services by status; no sample before the state is loaded."""
    services = _statuses(registry_stats(replica)) if loaded else {}
    yield _gauges("services", "Registered services, by status", "status", services)


def lease_metrics(store: RedisStore) -> Iterator[Metric]:
    """Yield the metrics of leases and heartbeats."""
    counters = store.counters
    yield _gauge("leases", "Services with a lease that can expire, at the last sweep", counters.active_leases)
    expired = {reason: counters.expired_services[reason] for reason in EXPIRIES}
    help_ = "Services that this process removed because their lease expired"
    yield _counters("leases_expired", help_, "reason", expired)
    heartbeats = {
        "renewed": counters.renewed_leases,
        "unknown": counters.unknown_leases,
        "superseded": counters.superseded_leases,
    }
    help_ = "Lease renewals by heartbeats, by whether the service and the instance are registered"
    yield _counters("heartbeats", help_, "result", heartbeats)
    yield _counter("takeovers", "Registrations that gave a name to another instance", counters.takeovers)


def health_metrics(monitor: HealthMonitor) -> Iterator[Metric]:
    """Yield the metrics of health monitoring."""
    counters = monitor.counters
    outcomes = {kind.value: counters.outcomes[kind] for kind in OutcomeKind}
    yield _counters("probes", "Finished probes, by outcome", "outcome", outcomes)
    yield _counter("probes_late", "Probes that started more than a second late", counters.late)
    yield _histogram("probe_lateness_seconds", "Delay between the due time of a probe and its start", counters.lateness)
    yield _gauge("probed_services", "Services that this process probes", monitor.probed_services)
    yield _gauge("members", "Live processes that share the probing", monitor.members)
    yield _gauge(
        "self_preservation_active",
        "Whether this process has suspended all status changes because too many services fail at once",
        monitor.self_preservation_active,
    )
    yield _gauge(
        "self_preservation_owners",
        "Owners whose status changes are suspended because too many of their own services fail at once",
        monitor.protected_owners,
    )
    yield _counter(
        "process_pauses",
        "Detected pauses of this process; probes in flight are discarded",
        monitor.process_pauses,
    )


def problem_metrics(problems: Problems) -> Iterator[Metric]:
    """Yield the current problems."""
    active = dict.fromkeys(problems.active, 1)
    yield _gauges("problem", "1 for each current problem that an operator must correct", "problem", active)


def event_loop_metrics(samples: Samples) -> Iterator[Metric]:
    """Yield the lag and the stalls of the event loop."""
    yield _histogram("event_loop_lag_seconds", "Delay until a scheduled task ran", samples.loop.lag)
    help_ = "Delays of more than 0.25 s until a scheduled task ran; no call was answered meanwhile"
    yield _histogram("event_loop_stall_seconds", help_, samples.loop.stalls)


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


def _counters(name: str, help_: str, label: str, values: Mapping[_Value, float]) -> Metric:
    return _labelled(CounterMetricFamily(PREFIX + name, help_, labels=[label]), values)


def _gauges(name: str, help_: str, label: str, values: Mapping[_Value, float]) -> Metric:
    return _labelled(GaugeMetricFamily(PREFIX + name, help_, labels=[label]), values)


def _labelled(family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[_Value, float]) -> Metric:
    for label, value in values.items():
        family.add_metric([label], value)
    return family


def _gauge(name: str, help_: str, value: float | None) -> Metric:
    """Return a gauge, without a sample if the value is unknown."""
    family = GaugeMetricFamily(PREFIX + name, help_, labels=())
    if value is not None:
        family.add_metric((), value)
    return family


def _histogram(name: str, help_: str, histogram: Histogram) -> Metric:
    family = _histograms(name, help_, ())
    _add_histogram(family, (), histogram)
    return family


def _histograms(name: str, help_: str, labels: Sequence[str]) -> HistogramMetricFamily:
    return HistogramMetricFamily(PREFIX + name, help_, labels=labels)


def _add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.sum)
