"""Python SDK for agents: register a service and keep its lease alive, discover services, watch changes.

::

    async with RegistryClient("localhost:50051") as client:
        me = make_service("summarizer", "http://10.0.0.7:8080", version="1.0.0", capabilities=["summarize"])
        async with client.registration(me, replicas=True), client.cache() as cache:
            translator = cache.resolve("translate", version="^2")

``registry_client.errors`` lists the errors; messages are those of ``ossa.registry.v1``.
"""

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
from ossa_common.violations import Violation
from registry_client.cache import ServiceCache
from registry_client.channel import Tls
from registry_client.client import RegistryClient
from registry_client.errors import (
    CursorExpired,
    DeadlineExceeded,
    InstanceSuperseded,
    InternalError,
    InvalidRequest,
    IssuerUnavailable,
    LimitExceeded,
    NoEndpoint,
    NoEndpointInTime,
    NotReplicated,
    Overloaded,
    PermissionDenied,
    ProbingDisabled,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    RevisionMismatch,
    RevisionNotReached,
    ServiceExists,
    ServiceNotFound,
    ShuttingDown,
    StoreUnavailable,
    Unauthenticated,
    WatcherTooSlow,
    WriteConflict,
)
from registry_client.leases import RegistrationState
from registry_client.registration import Registration
from registry_client.resolve import Policy
from registry_client.retry import Backoff
from registry_client.sync import SyncRegistryClient
from registry_client.values import enum_name, make_service
from registry_client.watch import Watch

__all__ = [
    "Backoff",
    "Capability",
    "CapabilitySummary",
    "Consistency",
    "CursorExpired",
    "DeadlineExceeded",
    "DiscoverServicesResponse",
    "Event",
    "EventReason",
    "EventType",
    "GetRegistryHealthResponse",
    "Health",
    "HealthCheck",
    "HealthStatus",
    "HeartbeatResponse",
    "InstanceSuperseded",
    "InternalError",
    "InvalidRequest",
    "IssuerUnavailable",
    "LimitExceeded",
    "Metadata",
    "NoEndpoint",
    "NoEndpointInTime",
    "NotReplicated",
    "Overloaded",
    "PermissionDenied",
    "Policy",
    "ProbingDisabled",
    "RateLimited",
    "Registration",
    "RegistrationState",
    "RegistryClient",
    "RegistryError",
    "RegistryStats",
    "RegistryUnavailable",
    "RevisionMismatch",
    "RevisionNotReached",
    "Service",
    "ServiceCache",
    "ServiceExists",
    "ServiceFilter",
    "ServiceNotFound",
    "ShuttingDown",
    "StoreUnavailable",
    "SyncRegistryClient",
    "TagMatch",
    "Tls",
    "Unauthenticated",
    "Violation",
    "Watch",
    "WatcherTooSlow",
    "WriteConflict",
    "enum_name",
    "make_service",
]
