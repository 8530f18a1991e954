"""``Metrics``: the metrics of this process in the text format of Prometheus, read at scrape time."""

import asyncio
import platform
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import InfoMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from registry_server import __version__
from registry_server.admission import Transport
from registry_server.parts import Parts
from registry_server.security.limits import InFlight
from registry_server.telemetry import families


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

    def __init__(self, parts: Parts, in_flight: Sequence[InFlight], labels: Mapping[str, str]) -> None:
        """Initialise the collector. The transports are added later, because one of them serves the metrics.

        Args:
            parts: The parts of the process.
            in_flight: The calls in flight of all transports, for each class of callers.
            labels: Added to every sample.
        """
        self._parts = parts
        self._in_flight = in_flight
        self._labels = labels
        self._transports: tuple[Transport, Transport] | None = None
        self._all = CollectorRegistry()  # not the global registry: tests run several servers in one process
        self._all.register(self)
        ProcessCollector(registry=self._all)
        GCCollector(registry=self._all)

    def add_transports(self, grpc: Transport, http: Transport) -> None:
        """Include the metrics of the transports from now on."""
        self._transports = grpc, http

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
        parts = self._parts
        if self._transports is not None:
            grpc, http = (transport.counters for transport in self._transports)
            yield from families.rpc_metrics(grpc)
            yield from families.http_metrics(http)
            yield from families.load_metrics(self._in_flight, parts.hub, parts.writes, grpc)
            yield from families.cache_metrics({"discovery": parts.discovery.counters, **http.caches})
        yield from families.store_metrics(parts.store, parts.follower)
        yield from families.follower_metrics(parts.follower, parts.replica)
        yield from families.watch_metrics(parts.hub)
        yield from families.service_metrics(parts.replica, loaded=parts.follower.loaded)
        yield from families.lease_metrics(parts.store)
        yield from families.health_metrics(parts.monitor)
        yield from families.event_loop_metrics(parts.samples)
        yield from families.problem_metrics(parts.problems)
