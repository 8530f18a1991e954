"""What happened between two states of the registry, told as events."""

from collections.abc import Mapping

from registry_client.messages import Event, EventReason, EventType, HealthStatus, Service


def snapshot(services: Mapping[str, Service]) -> list[Event]:
    """The events that a snapshot consists of."""
    return [
        Event(
            type=EventType.EVENT_TYPE_SERVICE_SNAPSHOT,
            service=service,
            revision=service.revision,
            occurred_at=service.updated_at,
        )
        for service in services.values()
    ]


def between(before: Mapping[str, Service], after: Mapping[str, Service], revision: int) -> list[Event]:
    """The events that lead from one state to another: those of services that are gone first.

    They have the reason ``RESYNC``, share one revision and have no time: when it happened is not known.
    """
    events = [
        _event(EventType.EVENT_TYPE_SERVICE_UNREGISTERED, service, service, revision)
        for name, service in before.items()
        if name not in after
    ]
    for name, service in after.items():
        old = before.get(name)
        if old is None:
            events.append(_event(EventType.EVENT_TYPE_SERVICE_REGISTERED, None, service, revision))
        elif old != service:
            events.append(_event(_kind(old, service), old, service, revision))
    return events


def _kind(old: Service, new: Service) -> EventType.ValueType:
    if old.health.status != new.health.status and _content(old) == _content(new):
        return EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
    return EventType.EVENT_TYPE_SERVICE_UPDATED


def _content(service: Service) -> Service:
    content = Service()
    content.CopyFrom(service)
    for field in ("health", "updated_at", "revision"):
        content.ClearField(field)
    return content


def _event(kind: EventType.ValueType, old: Service | None, state: Service, revision: int) -> Event:
    return Event(
        type=kind,
        service=state,
        previous_health=old.health.status if old else HealthStatus.HEALTH_STATUS_UNSPECIFIED,
        revision=revision,
        reason=EventReason.EVENT_REASON_RESYNC,
    )
