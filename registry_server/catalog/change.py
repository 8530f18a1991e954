"""``Change``: one revision of the history, which the catalog applies; ``WatchEvent``: how watchers receive it."""

from dataclasses import dataclass, field

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.service_pb2 import Service
from registry_server.model.record import Record
from registry_server.model.wire import bytes_field
from registry_server.runtime.clock import timestamp

_SERVICE_TAG = b"\x12"  # Event.service: field 2, length-delimited
_EVENTS_FIELD = 1  # WatchEventsResponse.events


class WatchEvent:
    """An event of a watch, serialised once for all watchers."""

    __slots__ = ("at_ms", "error", "frame", "name_only", "previous_health", "reason", "record", "revision", "type")

    def __init__(self, head: Event, record: Record | None, *, name_only: bool = False) -> None:
        """Serialise an event.

        Args:
            head: The event without its service.
            record: The service after the change, or before its removal; ``None`` for a notice.
            name_only: Whether the record has only a name and a revision.
        """
        self.name_only = name_only
        self.type, self.reason, self.revision = head.type, head.reason, head.revision
        self.previous_health, self.error = head.previous_health, head.error
        self.at_ms = head.occurred_at.ToMilliseconds()
        """Time of the change, in milliseconds since the epoch."""
        self.record = record
        service = record.framed_as(_SERVICE_TAG) if record else b""
        self.frame = bytes_field(_EVENTS_FIELD, head.SerializeToString() + service)
        """The ``Event`` as a field of ``WatchEventsResponse``."""


@dataclass(slots=True, kw_only=True, eq=False)
class Change:
    """A change to one service at one revision.

    A notice changes no service: it carries an ``error`` of the registry itself.
    """

    revision: int
    type: EventType.ValueType
    reason: EventReason.ValueType
    at_ms: int
    before: Record | None
    after: Record | None
    error: str = ""
    owner: str = ""
    """Owner of the service after the change; empty if it has none."""
    about: str = ""
    """Owner of the services that a notice is about; empty if it is not about those of one owner."""
    _event: WatchEvent | None = field(default=None, init=False)
    _unmatched: WatchEvent | None = field(default=None, init=False)
    _departure: WatchEvent | None = field(default=None, init=False)
    _arrival: WatchEvent | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.is_notice and not self.error:
            raise ValueError("a change has a state before, a state after or an error")

    @property
    def name(self) -> str:
        """Name of the service; empty for a notice."""
        record = self.after or self.before
        return record.name if record else ""

    @property
    def is_notice(self) -> bool:
        """Whether it concerns the registry itself rather than a service."""
        return self.after is None and self.before is None

    @property
    def size(self) -> int:
        """Approximate memory use in bytes."""
        return change_size(self.before, len(self.after.framed) if self.after else 0) + len(self.error)

    def event(self, *, matches: bool) -> WatchEvent:
        """Return the event for watchers whose filter matches the service after the change, or does not."""
        if not matches and self.after is not None:
            self._unmatched = self._unmatched or self._make_event(EventType.EVENT_TYPE_SERVICE_UNMATCHED)
            return self._unmatched
        self._event = self._event or self._make_event(self.type)
        return self._event

    def departure(self) -> WatchEvent:
        """Return the event for watchers that do not see the service any more: only its name and revision."""
        if self._departure is None:
            wire = Service(name=self.name, revision=self.revision).SerializeToString()
            type_ = EventType.EVENT_TYPE_SERVICE_UNMATCHED
            head = Event(type=type_, revision=self.revision, occurred_at=timestamp(self.at_ms * 1_000_000))
            self._departure = WatchEvent(head, Record(wire), name_only=True)
        return self._departure

    def arrival(self) -> WatchEvent:
        """Return the event for watchers that did not see the service before: without its health before."""
        if self._arrival is None:
            head = self._head(self.type)
            head.ClearField("previous_health")
            self._arrival = WatchEvent(head, self.after)
        return self._arrival

    def _make_event(self, type_: EventType.ValueType) -> WatchEvent:
        return WatchEvent(self._head(type_), self.after or self.before)

    def _head(self, type_: EventType.ValueType) -> Event:
        return Event(
            type=type_,
            previous_health=self.before.status if self.before else 0,  # type: ignore[arg-type]
            revision=self.revision,
            occurred_at=timestamp(self.at_ms * 1_000_000),
            reason=self.reason,
            error=self.error,
        )


def change_size(before: Record | None, after_bytes: int) -> int:
    """Return the approximate memory use of a change in bytes, without its error."""
    return 400 + (len(before.framed) if before else 0) + after_bytes


def snapshot_event(record: Record) -> WatchEvent:
    """Return the event that reports a service in a snapshot."""
    type_, updated_at = EventType.EVENT_TYPE_SERVICE_SNAPSHOT, record.message().updated_at
    return WatchEvent(Event(type=type_, revision=record.revision, occurred_at=updated_at), record)
