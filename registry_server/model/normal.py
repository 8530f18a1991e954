"""The normal form of a service: what is stored after a registration, an update or a change of health."""

from typing import Final

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1.event_pb2 import EVENT_TYPE_SERVICE_HEALTH_CHANGED, EVENT_TYPE_SERVICE_UPDATED, EventType
from ossa.registry.v1.service_pb2 import (
    HEALTH_STATUS_HEALTHY,
    HEALTH_STATUS_MAINTENANCE,
    HEALTH_STATUS_UNKNOWN,
    HEALTH_STATUS_UNSPECIFIED,
    Health,
    HealthStatus,
    Service,
)
from ossa_common.json_shape import OUTPUT_ONLY
from registry_server.model.endpoints import UNPROBED, probe_kind

OF_INSTANCE: Final = frozenset({"instance_id", "draining"})
"""Fields that updates do not change: the registered instance sets them by registrations, heartbeats and reports."""

_NO_STATUS = (HEALTH_STATUS_UNSPECIFIED, HEALTH_STATUS_UNKNOWN)


def ttl_seconds(service: Service, default: float) -> float:
    """Return the lease duration of a service in seconds, 0 if it is permanent, ``default`` if the service sets none."""
    return service.ttl.seconds + service.ttl.nanos / 1e9 if service.HasField("ttl") else default


def apply_registration(sent: Service, current: Service | None, now: Timestamp) -> Service:
    """Return the service after a registration.

    Args:
        sent: The valid service that the client sent.
        current: The registered service of this name, if there is one.
        now: Time of the change.

    Returns:
        The new state with the ``updated_at`` and ``revision`` of ``current``. It equals ``current`` if nothing changes.
    """
    service = Service()
    service.CopyFrom(sent)
    # Registering again with an unchanged status is not a new health report, even if its ``last_check`` is newer.
    same = current is not None and (sent.health.status, sent.endpoint) == (current.health.status, current.endpoint)
    keep_health = same or sent.health.status in _NO_STATUS
    if current is not None and takes_over(sent, current):
        # The health of the previous instance does not apply to this one, unless both answer at the same place.
        same_place = (sent.endpoint, sent.health_check) == (current.endpoint, current.health_check)
        keep_health &= same_place and current.health.status == HEALTH_STATUS_HEALTHY
    return _mark_heartbeating_healthy(_normalise(service, current, now, keep_health=keep_health), current, now)


def takes_over(sent: Service, current: Service) -> bool:
    """Return whether another instance takes the name over."""
    return sent.instance_id != current.instance_id


def apply_update(sent: Service, mask: FieldMask, current: Service, now: Timestamp) -> Service:
    """Return the service after an update.

    Args:
        sent: Values of the fields to change.
        mask: Valid paths of these fields. An empty mask means the fields that are set, ``*`` means all fields.
        current: The registered service.
        now: Time of the change.

    Returns:
        The new state, as ``apply_registration`` returns it.
    """
    service = Service()
    paths = list(mask.paths)
    if not paths:
        paths = [field.name for field, _ in sent.ListFields() if field.name not in OUTPUT_ONLY | OF_INSTANCE]
        if sent.health.status == current.health.status:
            paths = [path for path in paths if path != "health"]  # the client sent back the health that it read
    if paths == ["*"]:
        service.CopyFrom(sent)
    else:
        service.CopyFrom(current)
        for path in paths:
            _copy_field(path, sent, service)
    service.instance_id, service.draining = current.instance_id, current.draining
    keep_health = not any(path.split(".")[0] in ("health", "*") for path in paths)
    return _mark_heartbeating_healthy(_normalise(service, current, now, keep_health=keep_health), current, now)


def replace_health(current: Service, health: Health, now: Timestamp) -> Service:
    """Return the service with a new health; ``status_changed_at`` changes only with the status."""
    service = Service()
    service.CopyFrom(current)
    service.health.CopyFrom(health)
    if health.status != current.health.status:
        service.health.status_changed_at.CopyFrom(now)
    elif current.health.HasField("status_changed_at"):
        service.health.status_changed_at.CopyFrom(current.health.status_changed_at)
    return service


def set_change_time(service: Service, now: Timestamp) -> Service:
    """Set the times of a changed service in place and return it. Call it only if the service has changed."""
    service.updated_at.CopyFrom(now)
    if not service.HasField("registered_at"):
        service.registered_at.CopyFrom(now)
    return service


def update_type(before: Service, after: Service) -> EventType.ValueType:
    """Return the event type of an update: a health change if only ``health.status`` differs, otherwise an update."""
    if before.health.status == after.health.status:
        return EVENT_TYPE_SERVICE_UPDATED
    contents = []
    for service in (before, after):
        content = Service()
        content.CopyFrom(service)
        content.ClearField("health")
        clear_output_only(content)
        contents.append(content)
    if contents[0] == contents[1]:
        return EVENT_TYPE_SERVICE_HEALTH_CHANGED
    return EVENT_TYPE_SERVICE_UPDATED


def _copy_field(path: str, source: Message, target: Message) -> None:
    """Copy one field from ``source`` to ``target``; clear it if it is unset.

    ``FieldMask.MergeMessage`` would keep the old value if the message that contains the field is unset in ``source``.
    """
    name, _, below = path.partition(".")
    if below:
        if source.HasField(name) or target.HasField(name):
            _copy_field(below, getattr(source, name), getattr(target, name))
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


def _normalise(service: Service, current: Service | None, now: Timestamp, *, keep_health: bool) -> Service:
    clear_output_only(service)
    service.group = service.group or service.name
    health = service.health
    if current is None:
        health.status = health.status or HEALTH_STATUS_UNKNOWN
        health.status_changed_at.CopyFrom(now)
        return service
    service.registered_at.CopyFrom(current.registered_at)
    service.updated_at.CopyFrom(current.updated_at)
    service.revision = current.revision
    if current.HasField("maintenance"):
        service.maintenance.CopyFrom(current.maintenance)
    in_maintenance = current.health.status == HEALTH_STATUS_MAINTENANCE
    if keep_health and not in_maintenance and _has_new_source(service, current):
        # The known health belongs to the old endpoint or to its probes. A reported MAINTENANCE belongs to the service.
        health.Clear()
        health.status = HEALTH_STATUS_UNKNOWN
        health.status_changed_at.CopyFrom(now)
    elif keep_health:
        health.CopyFrom(current.health)
    else:
        health.status = health.status or HEALTH_STATUS_UNKNOWN
        changed = health.status != current.health.status
        health.status_changed_at.CopyFrom(now if changed else current.health.status_changed_at)
        if health.last_check == service.registered_at and not current.health.HasField("last_check"):
            health.ClearField("last_check")  # sent back as it was read in JSON
    return service


def _has_new_source(service: Service, current: Service) -> bool:
    """Return whether the known health does not describe the service: it is elsewhere, or no longer probed."""
    if service.endpoint != current.endpoint:
        return True
    if service.health_check == current.health_check:
        return False
    return probe_kind(service) in UNPROBED and probe_kind(current) not in UNPROBED


def initial_status(service: Service) -> HealthStatus.ValueType:
    """Return the status of a service before its first probe or report.

    It is HEALTHY if heartbeats decide the health: the lease then monitors the service.
    """
    by_heartbeat = probe_kind(service) == "heartbeat"
    return HEALTH_STATUS_HEALTHY if by_heartbeat else HEALTH_STATUS_UNKNOWN


def _mark_heartbeating_healthy(service: Service, current: Service | None, now: Timestamp) -> Service:
    """Replace an unknown status by the initial one."""
    health = service.health
    if health.status == HEALTH_STATUS_UNKNOWN and (initial := initial_status(service)) != health.status:
        health.status = initial
        same = current is not None and current.health.status == health.status
        health.status_changed_at.CopyFrom(current.health.status_changed_at if current and same else now)
    return service


def clear_output_only(service: Service) -> None:
    """Clear the fields that only the registry sets, in place."""
    service.ClearField("registered_at")
    service.ClearField("updated_at")
    service.ClearField("revision")
    service.ClearField("maintenance")
    if service.HasField("health"):
        service.health.ClearField("status_changed_at")
