"""Counts and capability summaries, computed from the index."""

import heapq
from bisect import bisect_right
from collections.abc import Sequence

from ossa.registry.v1.registry_service_pb2 import CapabilitySummary, RegistryStats
from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.catalog.change import Change
from registry_server.catalog.discovery import MAX_PAGE_BYTES
from registry_server.catalog.replica import Replica
from registry_server.model.record import capability_term, health_term

MAX_SERVICE_NAMES = 1_000
"""Service names that a capability summary lists; ``service_count`` is always exact."""
_MAX_PARSED_SERVICES = 100
"""Services parsed to find a capability's description: parsing is the expensive part of a summary."""


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
        self, replica: Replica, *, max_page_bytes: int = MAX_PAGE_BYTES, max_service_names: int = MAX_SERVICE_NAMES
    ) -> None:
        self._replica = replica
        self._max_page_bytes = max_page_bytes
        self._max_service_names = max_service_names
        self._summaries: dict[str, CapabilitySummary] = {}
        self._names: list[str] | None = None
        replica.on_applied.append(self._invalidate)

    def page(self, after: str, size: int) -> tuple[Sequence[CapabilitySummary], bool]:
        """Return the summaries of up to ``size`` capabilities after a name, and whether more follow."""
        if self._names is None:
            self._names = sorted(self._replica.index.values("c"))
        names = self._names
        start = bisect_right(names, after)
        page: list[CapabilitySummary] = []
        remaining_bytes = self._max_page_bytes
        for name in names[start : start + size]:
            summary = self._summary(name)
            remaining_bytes -= summary.ByteSize()
            if page and remaining_bytes < 0:
                break
            page.append(summary)
        return page, start + len(page) < len(names)

    def _summary(self, capability: str) -> CapabilitySummary:
        summary = self._summaries.get(capability)
        if summary is None:
            index = self._replica.index
            offering = index.names(capability_term(capability))
            first = heapq.nsmallest(self._max_service_names, offering)
            summary = self._summaries[capability] = CapabilitySummary(
                name=capability,
                versions=sorted(version for version in index.capability_versions(capability) if version),
                service_names=first,
                service_count=len(offering),
                description=self._description(capability, first),
            )
        return summary

    def _description(self, capability: str, names: Sequence[str]) -> str:
        for name in names[:_MAX_PARSED_SERVICES]:
            for offered in self._replica.records[name].message().capabilities:
                if offered.name == capability and offered.description:
                    return offered.description
        return ""

    def _invalidate(self, change: Change) -> None:
        self._names = None
        for record in (change.before, change.after):
            for term in record.terms if record else ():
                if term[0] == "c":
                    self._summaries.pop(term[2:], None)
