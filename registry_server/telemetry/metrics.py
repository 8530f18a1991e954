"""``Metrics``: the metrics of this process in the text format of Prometheus, read at scrape time."""

import asyncio
import platform
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from registry_server import __version__
from registry_server.catalog import Discovery, Replica
from registry_server.gateway import HttpServer
from registry_server.health import HealthMonitor
from registry_server.replication import Follower, Writes
from registry_server.rpc import RpcServer
from registry_server.security.limits import InFlight
from registry_server.store import RedisStore
from registry_server.telemetry import families
from registry_server.telemetry.samples import Samples
from registry_server.watch import WatchHub

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class _SingleFamily(Collector):
    """Exposes one metric family with additional labels."""

    def __init__(self, family: Metric, labels: Mapping[str, str]) -> None:
        self._family = family
        if labels:
            family.samples = [sample._replace(labels={**labels, **sample.labels}) for sample in family.samples]

    def collect(self) -> Iterator[Metric]:
        yield self._family


class Metrics(Collector):
    """Collects the metrics of one process from its parts."""

    def __init__(
        self,
        *,
        store: RedisStore,
        replica: Replica,
        discovery: Discovery,
        hub: WatchHub,
        follower: Follower,
        monitor: HealthMonitor,
        samples: Samples,
        writes: Writes,
        in_flight: InFlight,
        labels: Mapping[str, str],
    ) -> None:
        """Initialise the collector. The transports are added later, because one of them serves the metrics.

        The ``labels`` are added to every sample.
        """
        self._labels = labels
        self._store = store
        self._replica = replica
        self._discovery = discovery
        self._hub = hub
        self._follower = follower
        self._monitor = monitor
        self._samples = samples
        self._writes = writes
        self._in_flight = in_flight
        self._rpc: RpcServer | None = None
        self._http: HttpServer | None = None
        self._all = CollectorRegistry()  # not the global registry: tests run several servers in one process
        self._all.register(self)
        ProcessCollector(registry=self._all)
        GCCollector(registry=self._all)

    def add_transports(self, rpc: RpcServer, http: HttpServer) -> None:
        """Include the metrics of the transports from now on."""
        self._rpc, self._http = rpc, http

    async def text(self) -> bytes:
        """Return the current metrics in the text format 0.0.4."""
        parts: list[bytes] = []
        for family in list(self._all.collect()):
            parts.append(generate_latest(_SingleFamily(family, self._labels)))
            await asyncio.sleep(0)  # yields to the event loop: all families take 15 ms
        return b"".join(parts)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the registry."""
        build = {"version": __version__, "python_version": platform.python_version()}
        yield InfoMetricFamily(families.PREFIX + "build", "Versions of the registry and of Python", value=build)
        if self._rpc is not None and self._http is not None:
            yield from families.rpc_metrics(self._rpc.methods)
            yield from families.http_metrics(self._http.counters.routes)
            yield from families.load_metrics(self._in_flight, self._hub, self._writes, self._rpc.readers)
            yield from families.cache_metrics(self._discovery.counters, self._http.counters.listing)
        yield from families.store_metrics(self._store, self._follower)
        yield from families.follower_metrics(self._follower, self._replica)
        yield from families.watch_metrics(self._hub)
        yield from families.service_metrics(self._replica, loaded=self._follower.loaded)
        yield from families.lease_metrics(self._store)
        yield from families.health_metrics(self._monitor)
        yield from families.event_loop_metrics(self._samples)
