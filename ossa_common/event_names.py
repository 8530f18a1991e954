"""Names of events outside gRPC. Events that the OSSA reference implementation emits keep its names."""

from collections.abc import Mapping
from typing import Final

from ossa.registry.v1.event_pb2 import EventType

EVENT_NAMES: Final[Mapping[EventType.ValueType, str]] = {
    number: name.removeprefix("EVENT_TYPE_").lower().replace("_", ":") for name, number in EventType.items() if number
}
"""Names such as ``service:health:changed`` for EVENT_TYPE_SERVICE_HEALTH_CHANGED."""

REGISTRY_ERROR: Final = EVENT_NAMES[EventType.EVENT_TYPE_REGISTRY_ERROR]
