"""The normal form of a service: what is stored, made of what a client sent and what is known."""

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service

_NOT_GIVEN = (HealthStatus.HEALTH_STATUS_UNSPECIFIED, HealthStatus.HEALTH_STATUS_UNKNOWN)
_OUTPUT_ONLY = ("registered_at", "updated_at", "revision")


def ttl_seconds(service: Service, default: float) -> float:
    """Seconds that the lease of a service lasts, 0 = permanent; ``default`` is for those that do not say."""
    return service.ttl.seconds + service.ttl.nanos / 1e9 if service.HasField("ttl") else default


def apply_registration(sent: Service, current: Service | None, now: Timestamp) -> Service:
    """The service as a registration leaves it.

    Args:
        sent: What the client sent, valid.
        current: What is registered under this name, if anything is.
        now: Time of the change.

    Returns:
        The new state with ``updated_at`` and ``revision`` of ``current``: equal to ``current`` if nothing changes.
    """
    service = Service()
    service.CopyFrom(sent)
    # An agent that registers again with the status that it has tells nothing new, whatever time it puts on it.
    same = current is not None and (sent.health.status, sent.endpoint) == (current.health.status, current.endpoint)
    keep_health = same or sent.health.status in _NOT_GIVEN
    return _alive(_normal(service, current, now, keep_health=keep_health), current, now)


def apply_update(sent: Service, mask: FieldMask, current: Service, now: Timestamp) -> Service:
    """The service as an update leaves it.

    Args:
        sent: Values of the fields to change.
        mask: Paths of these fields, valid; empty = those that are set, ``*`` = all.
        current: What is registered.
        now: Time of the change.

    Returns:
        As for ``apply_registration``.
    """
    service = Service()
    paths = list(mask.paths)
    if not paths:
        paths = [field.name for field, _ in sent.ListFields() if field.name not in _OUTPUT_ONLY]
        if sent.health.status == current.health.status:
            paths = [path for path in paths if path != "health"]  # sent back as it was read
    if paths == ["*"]:
        service.CopyFrom(sent)
    else:
        service.CopyFrom(current)
        for path in paths:
            _take(path, sent, service)
    keep_health = not any(path.split(".")[0] in ("health", "*") for path in paths)
    return _alive(_normal(service, current, now, keep_health=keep_health), current, now)


def replace_health(current: Service, health: Health, now: Timestamp) -> Service:
    """The service with another health."""
    service = Service()
    service.CopyFrom(current)
    service.health.CopyFrom(health)
    if health.status != current.health.status:
        service.health.status_changed_at.CopyFrom(now)
    elif current.health.HasField("status_changed_at"):
        service.health.status_changed_at.CopyFrom(current.health.status_changed_at)
    return service


def set_change_time(service: Service, now: Timestamp) -> Service:
    """Says that the service changes now; to be called once it is known that it does."""
    service.updated_at.CopyFrom(now)
    if not service.HasField("registered_at"):
        service.registered_at.CopyFrom(now)
    return service


def update_type(before: Service, after: Service) -> EventType.ValueType:
    """Tells a change of the status alone from one of content; what is known beside the status counts as content."""
    contents = []
    for service in (before, after):
        content = Service()
        content.CopyFrom(service)
        content.ClearField("health")
        _clear_output_only(content)
        contents.append(content)
    if contents[0] == contents[1] and before.health.status != after.health.status:
        return EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
    return EventType.EVENT_TYPE_SERVICE_UPDATED


def _take(path: str, source: Message, target: Message) -> None:
    """Makes one field what it is in ``source``, also unset.

    ``FieldMask.MergeMessage`` would leave it as it is where the message around it is unset in ``source``.
    """
    name, _, below = path.partition(".")
    if below:
        if source.HasField(name) or target.HasField(name):
            _take(below, getattr(source, name), getattr(target, name))
        return
    target.ClearField(name)
    for field, value in source.ListFields():
        if field.name == name:
            if field.is_repeated:
                getattr(target, name).MergeFrom(value)
            elif field.message_type is not None:
                getattr(target, name).SetInParent()
                getattr(target, name).CopyFrom(value)
            else:
                setattr(target, name, value)


def _normal(service: Service, current: Service | None, now: Timestamp, *, keep_health: bool) -> Service:
    _clear_output_only(service)
    service.group = service.group or service.name
    health = service.health
    health.ClearField("status_changed_at")
    if current is None:
        health.status = health.status or HealthStatus.HEALTH_STATUS_UNKNOWN
        health.status_changed_at.CopyFrom(now)
        return service
    service.registered_at.CopyFrom(current.registered_at)
    service.updated_at.CopyFrom(current.updated_at)
    service.revision = current.revision
    taken_out = current.health.status == HealthStatus.HEALTH_STATUS_MAINTENANCE
    if keep_health and service.endpoint != current.endpoint and not taken_out:
        # What was known is of another endpoint; only what an operator says is of the service.
        health.Clear()
        health.status = HealthStatus.HEALTH_STATUS_UNKNOWN
        health.status_changed_at.CopyFrom(now)
    elif keep_health:
        health.CopyFrom(current.health)
    else:
        health.status = health.status or HealthStatus.HEALTH_STATUS_UNKNOWN
        changed = health.status != current.health.status
        health.status_changed_at.CopyFrom(now if changed else current.health.status_changed_at)
    return service


def _alive(service: Service, current: Service | None, now: Timestamp) -> Service:
    """Takes a service that is checked by its heartbeats for healthy: it speaks, and ends with its lease."""
    health = service.health
    if health.status == HealthStatus.HEALTH_STATUS_UNKNOWN and service.health_check.HasField("heartbeat"):
        health.status = HealthStatus.HEALTH_STATUS_HEALTHY
        same = current is not None and current.health.status == health.status
        health.status_changed_at.CopyFrom(current.health.status_changed_at if current and same else now)
    return service


def _clear_output_only(service: Service) -> None:
    service.ClearField("registered_at")
    service.ClearField("updated_at")
    service.ClearField("revision")
