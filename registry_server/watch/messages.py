"""Serialised ``WatchEventsResponse`` messages, and the limits on them."""

from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from ossa.registry.v1.event_pb2 import EventType
from registry_server.catalog.change import Change, snapshot_frame
from registry_server.model.record import Record
from registry_server.model.tokens import Cursor, encode_cursor
from registry_server.model.wire import bytes_field, integer_field
from registry_server.store import Position

# Field numbers of WatchEventsResponse; changes are already framed as `events` (1).
_CURSOR, _REVISION, _SNAPSHOT_COMPLETE = 2, 3, 4
_UNMATCHED: Final = EventType.EVENT_TYPE_SERVICE_UNMATCHED

MAX_RESYNC_MESSAGE_BYTES: Final = 2 << 20
"""A resync's difference is one revision and therefore one message. Beyond this size watchers reload a snapshot."""


class WatchLimits(NamedTuple):
    """Limits on messages and on what waits for slow readers."""

    buffer_events: int
    """Maximum number of events that wait for one watcher."""
    buffer_bytes: int
    """Maximum size of the events that wait for one watcher."""
    message_bytes: int = 1 << 20
    """Size at which a message is closed, unless one revision is larger. Clients accept 4 MiB by default."""
    snapshot_message_bytes: int = 256 << 10
    """The same for snapshots: smaller, so that the first services arrive early."""
    snapshot_records: int = 8_000_000
    """Maximum number of records referenced by all open snapshots; each costs 8 bytes until its reader has it."""
    cursor_wait_seconds: float = 5.0
    """How long to wait for this replica to reach a cursor issued by a process ahead of it."""


class Snapshot:
    """The services that match a filter at one position, shared by all watchers that start with it."""

    def __init__(self, records: Sequence[Record], position: Position) -> None:
        self.records = records
        self.position = position


def encode_message(
    frames: Collection[bytes], position: Position, *, resumable: bool = True, snapshot_complete: bool = False
) -> bytes:
    """Return a serialised message.

    Args:
        frames: Events, each framed as the field ``events``.
        position: Position that the message's cursor points to.
        resumable: False while a snapshot is incomplete: its cursor cannot be resumed from.
        snapshot_complete: Whether this message ends the snapshot.
    """
    cursor = encode_cursor(Cursor(position.epoch, position.revision, resumable=resumable))
    return b"".join(
        (
            *frames,
            bytes_field(_CURSOR, cursor.encode()),
            integer_field(_REVISION, position.revision),
            integer_field(_SNAPSHOT_COMPLETE, int(snapshot_complete)),
        )
    )


def snapshot_messages(snapshot: Snapshot, message_bytes: int) -> Iterator[bytes]:
    """Yield the messages of a snapshot; the last one completes it."""
    start = snapshot.position
    frames: list[bytes] = []
    size = 0
    for record in snapshot.records:
        frames.append(snapshot_frame(record))
        size += len(frames[-1])
        if size >= message_bytes:
            yield encode_message(frames, start, resumable=False)
            frames, size = [], 0
    if frames:
        yield encode_message(frames, start, resumable=False)
    yield encode_message((), start, snapshot_complete=True)


def framed_event(change: Change, *, matched: bool, matches: bool) -> tuple[int, bytes]:
    """Return the event type and the framed event of a change, for a filter that matched before or matches now."""
    if matched and not matches and change.after is not None:
        return _UNMATCHED, change.unmatched_frame()
    return change.type, change.event_frame()


def fits_one_message(changes: Sequence[Change], max_bytes: int = MAX_RESYNC_MESSAGE_BYTES) -> bool:
    """Return whether a resync's difference fits in one message."""
    return sum(change.size for change in changes) <= max_bytes
