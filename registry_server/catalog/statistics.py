"""Counts and capability summaries, computed from the index."""

import heapq
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from cachetools import LRUCache

from ossa.registry.v1.registry_service_pb2 import CapabilitySummary, RegistryStats
from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.catalog.change import Change
from registry_server.catalog.discovery import MAX_PAGE_BYTES
from registry_server.catalog.replica import Replica
from registry_server.catalog.slices import Slices
from registry_server.model.record import capability_term, health_term

MAX_SERVICE_NAMES = 1_000
"""Service names that a capability summary lists; ``service_count`` is always exact."""
_MAX_PARSED_SERVICES = 100
"""Services parsed to find a capability's description: parsing is the expensive part of a summary."""
_STEP_NAMES: Final = 5_000
"""About 1 ms."""
_MAX_CACHED_BYTES: Final = 32 << 20


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


class Capabilities:
    """Capability summaries, each cached until a service that offers the capability changes."""

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
        self._summaries: LRUCache[str, CapabilitySummary] = LRUCache(
            _MAX_CACHED_BYTES, getsizeof=CapabilitySummary.ByteSize
        )
        self._in_progress: dict[str, CapabilitySummary] = {}  # the newest, unless it is outdated
        replica.on_applied.append(self._invalidate)

    async def page(self, after: str, size: int) -> tuple[Sequence[CapabilitySummary], bool]:
        """Return the summaries of up to ``size`` capabilities after a name, and whether more follow."""
        names = self._replica.index.capabilities.after(after, size + 1)
        page: list[CapabilitySummary] = []
        await self._slices.run(self._summarise(names[:size], page))
        return page, len(names) > len(page)

    def _summarise(self, names: Sequence[str], page: list[CapabilitySummary]) -> Iterator[None]:
        """Append the summaries of capabilities that fit in a page."""
        remaining_bytes = self._max_page_bytes
        for name in names:
            summary = self._summaries.get(name)
            if summary is None:
                summary = self._in_progress[name] = CapabilitySummary(name=name)
                yield from self._complete(summary)
                if self._in_progress.get(name) is summary:
                    del self._in_progress[name]
                    with suppress(ValueError):  # larger than the cache
                        self._summaries[name] = summary
            remaining_bytes -= summary.ByteSize()
            if page and remaining_bytes < 0:
                return
            page.append(summary)
            yield

    def _complete(self, summary: CapabilitySummary) -> Iterator[None]:
        capability, index = summary.name, self._replica.index
        summary.versions.extend(sorted(filter(None, index.capability_versions(capability))))
        offering = list(index.names(capability_term(capability)))
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

    def _invalidate(self, change: Change) -> None:
        for record in (change.before, change.after):
            for term in record.terms if record else ():
                if term[0] == "c":
                    self._summaries.pop(term[2:], None)
                    self._in_progress.pop(term[2:], None)
