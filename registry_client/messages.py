"""The messages of ``ossa.registry.v1`` that the public API of the SDK uses, re-exported from one module."""

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import (
    CapabilitySummary,
    Consistency,
    DiscoverServicesResponse,
    GetRegistryHealthResponse,
    HeartbeatResponse,
    RegistryStats,
)
from ossa.registry.v1.service_pb2 import (
    Capability,
    Health,
    HealthCheck,
    HealthStatus,
    Metadata,
    Service,
    ServiceFilter,
    TagMatch,
)

__all__ = [
    "Capability",
    "CapabilitySummary",
    "Consistency",
    "DiscoverServicesResponse",
    "Event",
    "EventReason",
    "EventType",
    "GetRegistryHealthResponse",
    "Health",
    "HealthCheck",
    "HealthStatus",
    "HeartbeatResponse",
    "Metadata",
    "RegistryStats",
    "Service",
    "ServiceFilter",
    "TagMatch",
]
