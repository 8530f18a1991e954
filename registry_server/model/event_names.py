"""Names of events outside gRPC. Events that the OSSA reference implementation emits keep its names."""

from collections.abc import Mapping
from typing import Final

from ossa.registry.v1.event_pb2 import EventType

REGISTRY_ERROR: Final = "registry:error"

EVENT_NAMES: Final[Mapping[int, str]] = {
    EventType.EVENT_TYPE_SERVICE_REGISTERED: "service:registered",
    EventType.EVENT_TYPE_SERVICE_UPDATED: "service:updated",
    EventType.EVENT_TYPE_SERVICE_UNREGISTERED: "service:unregistered",
    EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED: "service:health:changed",
    EventType.EVENT_TYPE_REGISTRY_ERROR: REGISTRY_ERROR,
    EventType.EVENT_TYPE_SERVICE_SNAPSHOT: "service:snapshot",
    EventType.EVENT_TYPE_SERVICE_UNMATCHED: "service:unmatched",
}
