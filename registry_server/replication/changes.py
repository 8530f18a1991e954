"""Changes computed from stored events and from two states of the registry."""

from collections.abc import Iterable, Mapping

from google.protobuf.message import DecodeError

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.catalog.change import Change
from registry_server.model.normal import update_type
from registry_server.model.record import Record
from registry_server.store import DamagedEvent, Position, StoredEvent


def read_record(wire: bytes, name: str) -> Record | None:
    """Return the record of a service, or ``None`` if it is damaged: another program wrote it, or changed it."""
    try:
        record = Record(wire)
    except DecodeError:
        return None
    return record if record.name == name and record.revision else None


def change_from_event(event: StoredEvent, before: Record | None) -> Change:
    """Return the change that an event describes; ``before`` is the replica's record of the service, if it has one.

    Raises:
        DamagedEvent: The service after the change cannot be decoded, or the event describes no change.
    """
    if before is None and event.before:
        before = read_record(event.before, event.name)
    after = read_record(event.after, event.name) if event.after else None
    if after is None and (event.after or (before is None and not event.error)):
        raise DamagedEvent(event.revision)
    return Change(
        revision=event.revision,
        type=event.type,
        reason=event.reason,
        at_ms=event.at_ms,
        before=before,
        after=after,
        error=event.error,
        owner=event.owner,
        about="" if before or after else event.name,
    )


def merge_changes(records: dict[str, Record], owners: dict[str, str], changes: Iterable[Change]) -> None:
    """Apply changes, oldest first, to records and owners that were read while the changes were made."""
    for name, change in {change.name: change for change in changes}.items():
        if change.owner:
            owners[name] = change.owner
        else:
            owners.pop(name, None)
        if change.after is None:
            if name in records and records[name].revision < change.revision:
                del records[name]
        elif name not in records or records[name].revision < change.revision:
            records[name] = change.after


def resync_changes(
    current: Mapping[str, Record], records: Iterable[Record], position: Position, at_ms: int
) -> list[Change]:
    """Return the differences between the current records and newly read ones, as changes at one position."""
    removed = dict(current)
    found: list[tuple[EventType.ValueType, Record | None, Record | None]] = []
    for record in records:
        before = removed.pop(record.name, None)
        if before is None:
            found.append((EventType.EVENT_TYPE_SERVICE_REGISTERED, None, record))
        elif before.framed != record.framed:
            found.append((update_type(before.message(), record.message()), before, record))
    found += [(EventType.EVENT_TYPE_SERVICE_UNREGISTERED, before, None) for before in removed.values()]
    reason = EventReason.EVENT_REASON_RESYNC
    return [
        Change(revision=position.revision, type=type_, reason=reason, at_ms=at_ms, before=before, after=after)
        for type_, before, after in found
    ]
