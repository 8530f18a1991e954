"""Server-Sent Events: messages of a watch as the text of an event stream (https://html.spec.whatwg.org, 9.2.6)."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ossa.registry.v1.event_pb2 import Event, EventReason
from ossa.registry.v1.registry_service_pb2 import WatchEventsResponse
from registry_server.gateway.documents import Documents
from registry_server.gateway.envelope import Failure, encode
from registry_server.model.document import STATUS_WORDS, time_text
from registry_server.model.event_names import EVENT_NAMES, REGISTRY_ERROR
from registry_server.model.tokens import decode_cursor, encode_cursor

SNAPSHOT_STARTED: Final = "registry:snapshot:started"
SNAPSHOT_COMPLETE: Final = "registry:snapshot:complete"

REASONS: Final[Mapping[int, str]] = {
    number: name.removeprefix("EVENT_REASON_").lower() for name, number in EventReason.items() if number
}

_RESYNC = EventReason.EVENT_REASON_RESYNC


def opening(retry_ms: int, *, snapshot: bool) -> bytes:
    """How a stream begins.

    Args:
        retry_ms: Milliseconds after which a client that lost the stream comes back.
        snapshot: Whether a snapshot follows. Then the client forgets its cursor: cut within the snapshot it must ask
            for all of it again.
    """
    retry = b"retry: %d\n\n" % retry_ms
    return retry + (_event(SNAPSHOT_STARTED, b"{}", "") if snapshot else b"")


def ending(failure: Failure) -> bytes:
    """How a stream ends that the registry ends."""
    return _event(REGISTRY_ERROR, encode({"error": failure.document()}))


def text_of(message: WatchEventsResponse, documents: Documents) -> bytes:
    """Turns a message of a watch into text; one without events into a comment that moves the cursor."""
    if not decode_cursor(message.cursor).resumable:  # within a snapshot
        return b"".join(_event(EVENT_NAMES[event.type], _data(event, documents)) for event in message.events)
    parts = [
        _event(EVENT_NAMES[event.type], _data(event, documents), cursor)
        for event, cursor in zip(message.events, _cursors(message), strict=True)
    ]
    if message.snapshot_complete:
        parts.append(_event(SNAPSHOT_COMPLETE, encode({"revision": message.revision}), message.cursor))
    return b"".join(parts) or f": still here\nid: {message.cursor}\n\n".encode()


def _cursors(message: WatchEventsResponse) -> Iterator[str | None]:
    """For each event the cursor right after it; ``None`` if there is none.

    A client may be cut between any two events, so each has its own. But the events of a resync are one step: among
    them there is nothing to go on from, and revisions before them may be of another epoch.
    """
    here = decode_cursor(message.cursor)
    one_step = any(event.reason == _RESYNC for event in message.events)
    for event in message.events[:-1]:
        yield None if one_step else encode_cursor(here._replace(revision=event.revision))
    if message.events:
        yield message.cursor


def _data(event: Event, documents: Documents) -> bytes:
    facts: dict[str, Any] = {"revision": event.revision, "occurredAt": time_text(event.occurred_at)}
    if event.reason in REASONS:
        facts["reason"] = REASONS[event.reason]
    if event.previous_health:
        facts["previousHealth"] = STATUS_WORDS.get(event.previous_health, "unknown")
    if event.error:
        facts["error"] = {"code": "REGISTRY_ERROR", "message": event.error, "details": {}}
    if not event.HasField("service"):
        return encode(facts)
    return b"".join((b'{"service":', documents.of(event.service.SerializeToString()), b",", encode(facts)[1:]))


def _event(name: str, data: bytes, cursor: str | None = None) -> bytes:
    """One event; an empty ``cursor`` makes the client forget the one that it has."""
    lines = [b"event: " + name.encode()]
    if cursor is not None:
        lines.append(b"id: " + cursor.encode() if cursor else b"id")
    # JSON has no line breaks of its own: those in texts are escaped.
    lines.append(b"data: " + data)
    return b"\n".join(lines) + b"\n\n"
