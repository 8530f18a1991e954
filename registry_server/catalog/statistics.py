"""Counts and capability summaries, computed from the index."""

import heapq
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from cachetools import LRUCache

from ossa.registry.v1.registry_service_pb2 import CapabilitySummary, RegistryStats
from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.catalog.change import Change
from registry_server.catalog.discovery import MAX_PAGE_BYTES, Discovery
from registry_server.catalog.replica import Replica, count_capabilities
from registry_server.catalog.slices import Slices
from registry_server.model.filters import EVERYTHING, Filter
from registry_server.model.record import Record, capability_term, health_term

if TYPE_CHECKING:
    from registry_server.catalog.query import Query
    from registry_server.store import Position

MAX_SERVICE_NAMES = 1_000
"""Service names that a capability summary lists; ``service_count`` is always exact."""
_MAX_PARSED_SERVICES = 100
"""Services parsed to find a capability's description: parsing is the expensive part of a summary."""
_STEP_NAMES: Final = 5_000
"""About 1 ms."""
_STEP_RECORDS: Final = 200
"""About 1 ms: each takes up to 5 µs."""
_MAX_CACHED_BYTES: Final = 32 << 20
_ENTRY_BYTES: Final = 500
"""Overhead of a cached summary in addition to its bytes."""
_MAX_CACHED_COUNTS: Final = 64


def registry_stats(replica: Replica) -> RegistryStats:
    """Return counts of the registered services."""
    total = len(replica.records)
    index = replica.index

    def count_status(status: HealthStatus.ValueType) -> int:
        return index.count(health_term(status))

    return RegistryStats(
        total_services=total,
        healthy_services=count_status(HealthStatus.HEALTH_STATUS_HEALTHY),
        unhealthy_services=count_status(HealthStatus.HEALTH_STATUS_UNHEALTHY),
        degraded_services=count_status(HealthStatus.HEALTH_STATUS_DEGRADED),
        unknown_services=count_status(HealthStatus.HEALTH_STATUS_UNKNOWN),
        services_in_maintenance=count_status(HealthStatus.HEALTH_STATUS_MAINTENANCE),
        unique_capabilities=index.distinct("c"),
        total_capabilities=replica.total_capabilities,
        unique_versions=index.distinct("v"),
        unique_tags=index.distinct("t"),
        average_capabilities_per_service=replica.total_capabilities / total if total else 0.0,
    )


class _Summary(NamedTuple):
    """A cached summary."""

    state: object
    """State of the services that it describes."""
    summary: CapabilitySummary


class Statistics:
    """Counts of the services that callers see, kept until one of these services changes."""

    def __init__(self, replica: Replica, discovery: Discovery) -> None:
        self._replica = replica
        self._discovery = discovery
        self._kept: LRUCache[bytes, tuple[Query, int, RegistryStats]] = LRUCache(_MAX_CACHED_COUNTS)
        self._all: tuple[Position, RegistryStats] | None = None

    async def count(self, filter_: Filter) -> RegistryStats:
        """Return counts of the services that match a filter, which matches all services that the caller sees."""
        if filter_.visible is None:
            return self._count_all()
        query = await self._discovery.find_query(filter_)
        kept = self._kept.get(filter_.key)
        if kept is not None and kept[0] is query and kept[1] == query.version:
            return kept[2]
        version = query.version
        stats = RegistryStats()
        records = [self._replica.records[name] for name in query.names]  # of one revision
        await self._discovery.slices.run(_count_records(records, stats))
        self._kept[filter_.key] = query, version, stats
        return stats

    def _count_all(self) -> RegistryStats:
        position, total = self._replica.position, len(self._replica.records)
        # While the initial state is loaded, the number of services changes without the position.
        if self._all is None or self._all[0] is not position or self._all[1].total_services != total:
            self._all = position, registry_stats(self._replica)
        return self._all[1]


def _count_records(records: Sequence[Record], stats: RegistryStats) -> Iterator[None]:
    """Count services; yield after some of them."""
    statuses: Counter[int] = Counter()
    terms = set[str]()
    capabilities = 0
    for start in range(0, len(records), _STEP_RECORDS):
        for record in records[start : start + _STEP_RECORDS]:
            statuses[record.status] += 1
            terms.update(record.terms)
            capabilities += count_capabilities(record)
        yield
    kinds = Counter(term[0] for term in terms)
    stats.total_services = len(records)
    stats.healthy_services = statuses[HealthStatus.HEALTH_STATUS_HEALTHY]
    stats.unhealthy_services = statuses[HealthStatus.HEALTH_STATUS_UNHEALTHY]
    stats.degraded_services = statuses[HealthStatus.HEALTH_STATUS_DEGRADED]
    stats.unknown_services = statuses[HealthStatus.HEALTH_STATUS_UNKNOWN]
    stats.services_in_maintenance = statuses[HealthStatus.HEALTH_STATUS_MAINTENANCE]
    stats.unique_capabilities, stats.unique_versions, stats.unique_tags = kinds["c"], kinds["v"], kinds["t"]
    stats.total_capabilities = capabilities
    stats.average_capabilities_per_service = capabilities / len(records) if records else 0.0


class Capabilities:
    """Capability summaries, each cached until a service that offers the capability changes.

    Callers that see the same services share them.
    """

    def __init__(
        self,
        replica: Replica,
        slices: Slices,
        *,
        max_page_bytes: int = MAX_PAGE_BYTES,
        max_service_names: int = MAX_SERVICE_NAMES,
    ) -> None:
        self._replica = replica
        self._slices = slices
        self._max_page_bytes = max_page_bytes
        self._max_service_names = max_service_names
        self._summaries: LRUCache[tuple[str, str], _Summary] = LRUCache(
            _MAX_CACHED_BYTES, getsizeof=lambda kept: kept.summary.ByteSize() + _ENTRY_BYTES
        )
        # By capability: the state of its services that summaries describe. A change of one of them removes it.
        self._states: dict[str, object] = {}
        replica.on_applied.append(self._invalidate)

    async def page(
        self, after: str, size: int, filter_: Filter = EVERYTHING
    ) -> tuple[Sequence[CapabilitySummary], bool]:
        """Return the summaries of up to ``size`` capabilities after a name, and whether more follow.

        Args:
            after: Name of a capability.
            size: Maximum number of summaries.
            filter_: Matches all services that the caller sees; others do not count.
        """
        page: list[CapabilitySummary] = []
        has_more: list[bool] = []
        await self._slices.run(self._summarise(after, size, filter_, page, has_more))
        return page, bool(has_more)

    def _summarise(
        self, after: str, size: int, filter_: Filter, page: list[CapabilitySummary], has_more: list[bool]
    ) -> Iterator[None]:
        """Append the summaries of capabilities that fit in a page, and to ``has_more`` if another one follows."""
        remaining_bytes = self._max_page_bytes
        while names := self._replica.index.capabilities.after(after, size + 1 - len(page)):
            for name in names:
                after = name
                if len(page) == size and filter_.visible is None:
                    has_more.append(True)
                    return
                if not self._replica.index.count(capability_term(name)):
                    continue  # it was removed since the step before
                summary = CapabilitySummary(name=name)
                kept = self._summaries.get((filter_.scope, name))
                if kept is not None and kept.state is self._states.get(name):
                    summary = kept.summary
                else:
                    state = self._states.setdefault(name, object())
                    yield from self._complete(summary, filter_)
                    if self._states.get(name) is state:
                        with suppress(ValueError):  # larger than the cache
                            self._summaries[filter_.scope, name] = _Summary(state, summary)
                if not summary.service_count:
                    yield
                    continue
                remaining_bytes -= summary.ByteSize()
                if len(page) == size or (page and remaining_bytes < 0):
                    has_more.append(True)
                    return
                page.append(summary)
                yield

    def _complete(self, summary: CapabilitySummary, filter_: Filter) -> Iterator[None]:
        capability, index = summary.name, self._replica.index
        offering = list(index.names(capability_term(capability)))
        versions: Iterable[str] = index.capability_versions(capability)
        if filter_.visible is not None:
            offering, versions = yield from self._visible(offering, capability, filter_)
        summary.versions.extend(sorted(filter(None, versions)))
        summary.service_count = len(offering)
        first: list[str] = []
        for start in range(0, len(offering), _STEP_NAMES):
            first = heapq.nsmallest(self._max_service_names, first + offering[start : start + _STEP_NAMES])
            yield
        summary.service_names.extend(first)
        for name in first[:_MAX_PARSED_SERVICES]:
            record = self._replica.records.get(name)
            for offered in record.message().capabilities if record else ():
                if offered.name == capability and offered.description:
                    summary.description = offered.description
                    return
            yield

    def _visible(
        self, names: Sequence[str], capability: str, filter_: Filter
    ) -> Generator[None, None, tuple[list[str], set[str]]]:
        """Return those of the services that the caller sees, and their versions of a capability."""
        visible: list[str] = []
        versions = set[str]()
        for start in range(0, len(names), _STEP_RECORDS):
            for name in names[start : start + _STEP_RECORDS]:
                record = self._replica.records.get(name)
                if record is not None and not filter_.hides(record):
                    visible.append(name)
                    versions.update(record.capability_versions(capability))
            yield
        return visible, versions

    def _invalidate(self, change: Change) -> None:
        for record in (change.before, change.after):
            for term in record.terms if record else ():
                if term[0] == "c":
                    self._states.pop(term[2:], None)
