"""``Change``: one step of the history, as the catalog applies it and watchers are told of it."""

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from registry_server.model.record import Record
from registry_server.model.wire import bytes_field
from registry_server.runtime.clock import timestamp

_SERVICE_TAG = b"\x12"  # Event.service: field 2, length-delimited
_EVENTS = 1  # WatchEventsResponse.events


class Change:
    """What became of one service at one revision. Serialised once, whoever watches.

    A notice is of no service: it has an ``error`` of the registry itself, and is for every watcher.
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
        """Who owns the service from then on; empty for nobody."""
        self._event: bytes | None = None
        self._unmatched: bytes | None = None

    @property
    def name(self) -> str:
        """Name of the service; empty for a notice."""
        last = self.after or self.before
        return last.name if last else ""

    @property
    def is_notice(self) -> bool:
        """Whether it is about no service but the registry itself."""
        return self.after is None and self.before is None

    @property
    def size(self) -> int:
        """About how many bytes it keeps in memory."""
        return 400 + len(self.error) + sum(len(record.framed) for record in (self.before, self.after) if record)

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

    def _framed(self, type_: EventType.ValueType) -> bytes:
        head = Event(
            type=type_,
            previous_health=self.before.status if self.before else 0,  # type: ignore[arg-type]
            revision=self.revision,
            occurred_at=timestamp(self.at_ms * 1_000_000),
            reason=self.reason,
            error=self.error,
        )
        last = self.after or self.before
        return bytes_field(_EVENTS, head.SerializeToString() + (last.framed_as(_SERVICE_TAG) if last else b""))


def snapshot_event(record: Record) -> bytes:
    """The state of a service as a field of ``WatchEventsResponse``."""
    service = record.message()
    head = Event(type=EventType.EVENT_TYPE_SERVICE_SNAPSHOT, revision=record.revision, occurred_at=service.updated_at)
    return bytes_field(_EVENTS, head.SerializeToString() + record.framed_as(_SERVICE_TAG))
