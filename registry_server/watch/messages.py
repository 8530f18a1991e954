"""``EventBatch``: the events that a watch sends in one message, and the limits on them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ossa_common.cursors import Cursor, encode_cursor
from registry_server.catalog.change import Change, WatchEvent, snapshot_event
from registry_server.model.record import Record
from registry_server.model.wire import bytes_field, integer_field
from registry_server.runtime.pacing import SLICE_SECONDS
from registry_server.store import Position

# Field numbers of WatchEventsResponse; events are already framed as `events` (1).
_CURSOR, _REVISION, _SNAPSHOT_COMPLETE = 2, 3, 4

MAX_RESYNC_MESSAGE_BYTES: Final = 2 << 20
"""A resync's difference is one revision and therefore one message. Beyond this size watchers reload a snapshot."""


class WatchLimits(NamedTuple):
    """Limits on messages and on what waits for slow readers."""

    buffer_events: int
    """Maximum number of events that wait for one watcher."""
    buffer_bytes: int
    """Maximum size of the events that wait for one watcher."""
    message_bytes: int = 64 << 10
    """Size at which a message is closed, unless one revision is larger. Each stream whose client does not read holds
    one: here, and in gRPC. It takes about 6 ms to encode as JSON."""
    snapshot_message_bytes: int = 64 << 10
    """The same for snapshots."""
    snapshot_records: int = 8_000_000
    """Maximum number of records referenced by all open snapshots; each costs 8 bytes until its reader has it."""
    cursor_wait_seconds: float = 5.0
    """How long to wait for this replica to reach a cursor issued by a process ahead of it."""
    slice_seconds: float = SLICE_SECONDS
    """How long changes are matched in a turn of the event loop."""
    backlog_changes: int = 10_000
    """Number of changes that wait to be matched; watches that miss more end."""
    backlog_bytes: int = 32 << 20
    """Maximum size of these changes. Most of them are in the history, too."""


class Snapshot:
    """The services that match a filter at one position, shared by all watchers that start with it."""

    def __init__(self, records: Sequence[Record], position: Position, scope: str) -> None:
        self.records = records
        self.position = position
        self.scope = scope


@dataclass(slots=True, eq=False)
class EventBatch:
    """A message of a watch. All watchers that send the same events share it."""

    events: Sequence[WatchEvent]
    """No events: a bookmark."""
    position: Position
    """Position that the cursor points to."""
    resumable: bool = field(default=True, kw_only=True)
    """False while a snapshot is incomplete: the cursor cannot be resumed from."""
    snapshot_complete: bool = field(default=False, kw_only=True)
    """Whether this batch ends the snapshot."""
    scope: str = field(default="", kw_only=True)
    """Identifies what the client sees; the cursor is only valid for it."""
    shared: bool = field(default=False, kw_only=True)
    """Whether other watchers send it too; otherwise what it holds is held for one stream."""
    size: int = field(init=False)
    """Size of the events in the message, in bytes."""
    sse: bytes = field(default=b"", init=False)
    """The batch as Server-Sent Events; empty until the gateway has encoded it."""
    _wire: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        self.size = sum(len(event.frame) for event in self.events)

    @property
    def wire(self) -> bytes:
        """The serialised ``WatchEventsResponse``, made when it is first needed."""
        if not self._wire:
            self._wire = b"".join(
                (
                    *(event.frame for event in self.events),
                    bytes_field(_CURSOR, encode_cursor(self.cursor).encode()),
                    integer_field(_REVISION, self.revision),
                    integer_field(_SNAPSHOT_COMPLETE, int(self.snapshot_complete)),
                )
            )
        return self._wire

    @property
    def revision(self) -> int:
        """Revision that a client has reached with this batch."""
        return self.position.revision

    @property
    def cursor(self) -> Cursor:
        """Cursor that follows the batch."""
        return Cursor(self.position.epoch, self.position.revision, self.resumable, self.scope)


def split_events(events: Iterable[WatchEvent], max_bytes: int) -> Iterator[list[WatchEvent]]:
    """Yield lists of events of at least ``max_bytes``; the last one is smaller, and may be empty."""
    part: list[WatchEvent] = []
    size = 0
    for event in events:
        part.append(event)
        size += len(event.frame)
        if size >= max_bytes:
            yield part
            part, size = [], 0
    yield part


def snapshot_batches(snapshot: Snapshot, max_bytes: int) -> Iterator[EventBatch]:
    """Yield the batches of a snapshot; the last one completes it."""
    for events in split_events(map(snapshot_event, snapshot.records), max_bytes):
        if events:
            yield EventBatch(events, snapshot.position, resumable=False, scope=snapshot.scope)
    yield EventBatch((), snapshot.position, snapshot_complete=True, scope=snapshot.scope)


def fits_one_message(changes: Sequence[Change], max_bytes: int = MAX_RESYNC_MESSAGE_BYTES) -> bool:
    """Return whether a resync's difference fits in one message."""
    return sum(change.size for change in changes) <= max_bytes
