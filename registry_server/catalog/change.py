"""``Change``: one revision of the history, which the catalog applies and watchers receive as an event."""

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from registry_server.model.record import Record
from registry_server.model.wire import bytes_field
from registry_server.runtime.clock import timestamp

_SERVICE_TAG = b"\x12"  # Event.service: field 2, length-delimited
_EVENTS_FIELD = 1  # WatchEventsResponse.events


class Change:
    """A change to one service at one revision. Its event is serialised once for all watchers.

    A notice concerns no service: it carries an ``error`` of the registry itself and goes to every watcher.
    """

    __slots__ = ("_event", "_unmatched", "after", "at_ms", "before", "error", "owner", "reason", "revision", "type")

    def __init__(
        self,
        *,
        revision: int,
        type: EventType.ValueType,  # noqa: A002 - the field's name in the contract
        reason: EventReason.ValueType,
        at_ms: int,
        before: Record | None,
        after: Record | None,
        error: str = "",
        owner: str = "",
    ) -> None:
        if before is None and after is None and not error:
            raise ValueError("a change has a state before, a state after or an error")
        self.revision = revision
        self.type = type
        self.reason = reason
        self.at_ms = at_ms
        self.before = before
        self.after = after
        self.error = error
        self.owner = owner
        """Owner of the service after the change; empty if it has none."""
        self._event: bytes | None = None
        self._unmatched: bytes | None = None

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
        return 400 + len(self.error) + sum(len(record.framed) for record in (self.before, self.after) if record)

    def event_frame(self) -> bytes:
        """Return the ``Event``, framed as a field of ``WatchEventsResponse``."""
        if self._event is None:
            self._event = self._frame(self.type)
        return self._event

    def unmatched_frame(self) -> bytes:
        """Return the framed event for watchers whose filter no longer matches the service."""
        if self._unmatched is None:
            self._unmatched = self._frame(EventType.EVENT_TYPE_SERVICE_UNMATCHED)
        return self._unmatched

    def _frame(self, type_: EventType.ValueType) -> bytes:
        head = Event(
            type=type_,
            previous_health=self.before.status if self.before else 0,  # type: ignore[arg-type]
            revision=self.revision,
            occurred_at=timestamp(self.at_ms * 1_000_000),
            reason=self.reason,
            error=self.error,
        )
        record = self.after or self.before
        service = record.framed_as(_SERVICE_TAG) if record else b""
        return bytes_field(_EVENTS_FIELD, head.SerializeToString() + service)


def snapshot_frame(record: Record) -> bytes:
    """Return the snapshot event of a service, framed as a field of ``WatchEventsResponse``."""
    service = record.message()
    head = Event(type=EventType.EVENT_TYPE_SERVICE_SNAPSHOT, revision=record.revision, occurred_at=service.updated_at)
    return bytes_field(_EVENTS_FIELD, head.SerializeToString() + record.framed_as(_SERVICE_TAG))
