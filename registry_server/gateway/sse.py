"""Encoding of watch messages as Server-Sent Events (https://html.spec.whatwg.org, 9.2.6)."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ossa.registry.v1.event_pb2 import EventReason
from ossa_common.cursors import encode_cursor
from ossa_common.event_names import EVENT_NAMES, REGISTRY_ERROR
from ossa_common.json_shape import STATUS_WORDS, enum_word
from ossa_common.json_writer import time_text
from registry_server.catalog import WatchEvent
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import Failure, encode_json
from registry_server.runtime.clock import timestamp
from registry_server.watch import EventBatch

SNAPSHOT_STARTED: Final = "registry:snapshot:started"
SNAPSHOT_COMPLETE: Final = "registry:snapshot:complete"

REASONS: Final[Mapping[int, str]] = {
    number: enum_word(EventReason.DESCRIPTOR, number) for number in EventReason.values() if number
}

_RESYNC = EventReason.EVENT_REASON_RESYNC


def encode_opening(retry_ms: int, *, snapshot: bool) -> bytes:
    """Return the beginning of a stream.

    Args:
        retry_ms: Milliseconds after which a disconnected client reconnects.
        snapshot: Whether a snapshot follows. If so, the client's cursor is reset: a client that disconnects during the
            snapshot must request all of it again.
    """
    retry = b"retry: %d\n\n" % retry_ms
    return retry + (_event(SNAPSHOT_STARTED, b"{}", "") if snapshot else b"")


def encode_ending(failure: Failure) -> bytes:
    """Return the last event of a stream that the registry ends."""
    return _event(REGISTRY_ERROR, encode_json({"error": failure.document()}))


def encode_batch(batch: EventBatch, documents: Documents) -> bytes:
    """Return a batch as text; without events, a comment that advances the cursor. All streams share the text."""
    if not batch.sse:
        batch.sse = _encode_batch(batch, documents)
    return batch.sse


def _encode_batch(batch: EventBatch, documents: Documents) -> bytes:
    if not batch.resumable:  # within a snapshot
        return b"".join(_event(EVENT_NAMES[event.type], _data(event, documents)) for event in batch.events)
    parts = [
        _event(EVENT_NAMES[event.type], _data(event, documents), cursor)
        for event, cursor in zip(batch.events, _cursors(batch), strict=True)
    ]
    end = encode_cursor(batch.cursor)
    if batch.snapshot_complete:
        parts.append(_event(SNAPSHOT_COMPLETE, encode_json({"revision": batch.revision}), end))
    return b"".join(parts) or f": keep-alive\nid: {end}\n\n".encode()


def _cursors(batch: EventBatch) -> Iterator[str | None]:
    """Yield the cursor that follows each event; ``None`` if it cannot be resumed after.

    A client may disconnect between any two events, so each has its own cursor. The events of a resync share one
    revision: only the last of them can be resumed after, and earlier revisions may belong to another epoch.
    """
    is_resync = any(event.reason == _RESYNC for event in batch.events)
    for event in batch.events[:-1]:
        yield None if is_resync else encode_cursor(batch.cursor._replace(revision=event.revision))
    if batch.events:
        yield encode_cursor(batch.cursor)


def event_document(event: WatchEvent, documents: Documents) -> bytes:
    """Return an event as one JSON object, with its name in ``event``."""
    return b'{"event":"%b",' % EVENT_NAMES[event.type].encode() + _data(event, documents)[1:]


def _data(event: WatchEvent, documents: Documents) -> bytes:
    fields: dict[str, Any] = {"revision": event.revision, "occurredAt": time_text(timestamp(event.at_ms * 1_000_000))}
    if event.reason in REASONS:
        fields["reason"] = REASONS[event.reason]
    if event.previous_health:
        fields["previousHealth"] = STATUS_WORDS.get(event.previous_health, "unknown")
    if event.error:
        fields["error"] = {"code": "REGISTRY_ERROR", "message": event.error, "details": {}}
    if event.record is None:
        return encode_json(fields)
    if event.name_only:
        return encode_json({"service": {"name": event.record.name, "revision": event.record.revision}, **fields})
    return b"".join((b'{"service":', documents.encoded(event.record), b",", encode_json(fields)[1:]))


def _event(name: str, data: bytes, cursor: str | None = None) -> bytes:
    """Return one event; an empty ``cursor`` resets the client's cursor."""
    lines = [b"event: " + name.encode()]
    if cursor is not None:
        lines.append(b"id: " + cursor.encode() if cursor else b"id")
    # Encoded JSON contains no line breaks: those in strings are escaped.
    lines.append(b"data: " + data)
    return b"\n".join(lines) + b"\n\n"
