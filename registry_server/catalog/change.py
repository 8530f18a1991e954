"""``Change``: one step of the history, as the catalog applies it and watchers are told of it."""

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from registry_server.clock import timestamp
from registry_server.model.record import Record
from registry_server.model.wire import bytes_field

_SERVICE_TAG = b"\x12"  # Event.service: field 2, length-delimited
_EVENTS = 1  # WatchEventsResponse.events


class Change:
    """What became of one service at one revision. Serialised once, whoever watches."""

    __slots__ = ("_event", "_unmatched", "after", "at_ms", "before", "reason", "revision", "type")

    def __init__(
        self,
        *,
        revision: int,
        type: EventType.ValueType,  # noqa: A002 - the field's name in the contract
        reason: EventReason.ValueType,
        at_ms: int,
        before: Record | None,
        after: Record | None,
    ) -> None:
        if before is None and after is None:
            raise ValueError("a change has a state before or a state after")
        self.revision = revision
        self.type = type
        self.reason = reason
        self.at_ms = at_ms
        self.before = before
        self.after = after
        self._event: bytes | None = None
        self._unmatched: bytes | None = None

    @property
    def name(self) -> str:
        """Name of the service."""
        return self._last.name

    @property
    def size(self) -> int:
        """About how many bytes it keeps in memory."""
        return 400 + sum(len(record.framed) for record in (self.before, self.after) if record)

    def event(self) -> bytes:
        """The ``Event`` as a field of ``WatchEventsResponse``."""
        if self._event is None:
            self._event = self._framed(self.type)
        return self._event

    def unmatched(self) -> bytes:
        """The same for watchers whose filter the service stopped to match."""
        if self._unmatched is None:
            self._unmatched = self._framed(EventType.EVENT_TYPE_SERVICE_UNMATCHED)
        return self._unmatched

    @property
    def _last(self) -> Record:
        record = self.after or self.before
        assert record is not None  # noqa: S101 - held by the constructor
        return record

    def _framed(self, type_: EventType.ValueType) -> bytes:
        head = Event(
            type=type_,
            previous_health=self.before.status if self.before else 0,  # type: ignore[arg-type]
            revision=self.revision,
            occurred_at=timestamp(self.at_ms * 1_000_000),
            reason=self.reason,
        )
        return bytes_field(_EVENTS, head.SerializeToString() + self._last.framed_as(_SERVICE_TAG))


def snapshot_event(record: Record) -> bytes:
    """The state of a service as a field of ``WatchEventsResponse``."""
    service = record.message()
    head = Event(type=EventType.EVENT_TYPE_SERVICE_SNAPSHOT, revision=record.revision, occurred_at=service.updated_at)
    return bytes_field(_EVENTS, head.SerializeToString() + record.framed_as(_SERVICE_TAG))
