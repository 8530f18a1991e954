"""Encoding of watch messages as Server-Sent Events."""

import json

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa_common.cursors import Cursor, encode_cursor
from ossa_common.event_names import EVENT_NAMES
from registry_server.catalog import WatchEvent
from registry_server.gateway import sse
from registry_server.gateway.documents import Documents
from registry_server.model.record import Record
from registry_server.store import Position
from registry_server.watch import EventBatch
from tests.support.samples import small_service


def batch(*events: WatchEvent) -> EventBatch:
    return EventBatch(events, Position("e", 9))


def event(revision: int, reason: EventReason.ValueType = EventReason.EVENT_REASON_CLIENT_REQUEST) -> WatchEvent:
    record = Record(small_service("a", revision=revision).SerializeToString())
    return WatchEvent(Event(type=EventType.EVENT_TYPE_SERVICE_REGISTERED, revision=revision, reason=reason), record)


def cursors(subject: EventBatch) -> list[str | None]:
    """Return the cursor of each encoded event, or ``None``."""
    text = sse.encode_batch(subject, Documents()).decode()
    blocks = [block for block in text.split("\n\n") if block]
    return [next((line[4:] for line in block.split("\n") if line.startswith("id: ")), None) for block in blocks]


def test_each_event_has_the_cursor_that_follows_it() -> None:
    here = encode_cursor(Cursor("e", 9))
    assert cursors(batch(event(3), event(5))) == [encode_cursor(Cursor("e", 3)), here]
    assert cursors(batch()) == [here]


def test_only_the_last_event_of_a_resync_has_a_cursor() -> None:
    resync = EventReason.EVENT_REASON_RESYNC
    here = encode_cursor(Cursor("e", 9))
    assert cursors(batch(event(3), event(2, resync), event(2, resync))) == [None, None, here]


def test_registry_error_is_encoded_without_a_service() -> None:
    error = Event(type=EventType.EVENT_TYPE_REGISTRY_ERROR, error="the store\nis down", revision=9)
    text = sse.encode_batch(batch(WatchEvent(error, None)), Documents()).decode()
    assert text.endswith("\n\n")
    fields = dict(line.split(": ", 1) for line in text.removesuffix("\n\n").split("\n"))
    assert fields["event"] == "registry:error"
    data = json.loads(fields["data"])
    assert "service" not in data
    assert data["error"]["message"] == "the store\nis down"


def test_batch_is_encoded_once_for_all_streams() -> None:
    for subject in (batch(event(9)), batch()):
        assert sse.encode_batch(subject, Documents()) is sse.encode_batch(subject, Documents())


def test_every_event_type_and_reason_has_a_name() -> None:
    assert set(EVENT_NAMES) == set(EventType.values()) - {EventType.EVENT_TYPE_UNSPECIFIED}
    assert set(sse.REASONS) == set(EventReason.values()) - {EventReason.EVENT_REASON_UNSPECIFIED}
