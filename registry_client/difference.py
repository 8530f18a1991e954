"""The difference between two states of the registry, expressed as events."""

from collections.abc import Mapping

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.service_pb2 import HealthStatus, Service


def snapshot_events(services: Mapping[str, Service]) -> list[Event]:
    """Return the events of a snapshot: one ``SERVICE_SNAPSHOT`` for each service."""
    return [
        Event(
            type=EventType.EVENT_TYPE_SERVICE_SNAPSHOT,
            service=service,
            revision=service.revision,
            occurred_at=service.updated_at,
        )
        for service in services.values()
    ]


def diff_events(before: Mapping[str, Service], after: Mapping[str, Service], revision: int) -> list[Event]:
    """Return the events that lead from one state to another, removals first.

    All have the reason ``RESYNC`` and the same revision. ``occurred_at`` is unset, because the time of the change is
    unknown.
    """
    events = [
        _resync_event(EventType.EVENT_TYPE_SERVICE_UNREGISTERED, service, service, revision)
        for name, service in before.items()
        if name not in after
    ]
    for name, service in after.items():
        old = before.get(name)
        if old is None:
            events.append(_resync_event(EventType.EVENT_TYPE_SERVICE_REGISTERED, None, service, revision))
        elif old != service:
            events.append(_resync_event(_change_type(old, service), old, service, revision))
    return events


def _change_type(old: Service, new: Service) -> EventType.ValueType:
    if old.health.status != new.health.status and _without_health(old) == _without_health(new):
        return EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
    return EventType.EVENT_TYPE_SERVICE_UPDATED


def _without_health(service: Service) -> Service:
    content = Service()
    content.CopyFrom(service)
    for field in ("health", "updated_at", "revision"):
        content.ClearField(field)
    return content


def _resync_event(kind: EventType.ValueType, old: Service | None, state: Service, revision: int) -> Event:
    return Event(
        type=kind,
        service=state,
        previous_health=old.health.status if old else HealthStatus.HEALTH_STATUS_UNSPECIFIED,
        revision=revision,
        reason=EventReason.EVENT_REASON_RESYNC,
    )
