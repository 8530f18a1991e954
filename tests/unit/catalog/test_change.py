import pytest

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsResponse
from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.catalog.change import Change, snapshot_frame
from registry_server.model.record import Record
from tests.support.samples import example_service, small_service

HEALTH_CHECK = EventReason.EVENT_REASON_HEALTH_CHECK


def record(
    name: str = "a", revision: int = 1, status: HealthStatus.ValueType = HealthStatus.HEALTH_STATUS_UNKNOWN
) -> Record:
    return Record(small_service(name, revision=revision, health={"status": status}).SerializeToString())


def change(before: Record | None = None, after: Record | None = None, error: str = "") -> Change:
    return Change(
        revision=7,
        type=EventType.EVENT_TYPE_SERVICE_UPDATED if before or after else EventType.EVENT_TYPE_REGISTRY_ERROR,
        reason=HEALTH_CHECK,
        at_ms=1_500,
        before=before,
        after=after,
        error=error,
    )


def parse_frame(frame: bytes) -> Event:
    [event] = WatchEventsResponse.FromString(frame).events
    return event


def test_event_contains_the_new_state_and_the_previous_health() -> None:
    before, after = record(status=HealthStatus.HEALTH_STATUS_HEALTHY), record(revision=7)
    subject = change(before, after)
    event = parse_frame(subject.event_frame())
    assert (subject.name, subject.is_notice) == ("a", False)
    assert event.service == after.message()
    assert event.previous_health == HealthStatus.HEALTH_STATUS_HEALTHY
    assert (event.type, event.revision, event.reason) == (subject.type, 7, HEALTH_CHECK)
    assert event.occurred_at.ToMilliseconds() == 1_500
    assert not event.error
    assert parse_frame(subject.unmatched_frame()).type == EventType.EVENT_TYPE_SERVICE_UNMATCHED
    assert parse_frame(subject.unmatched_frame()).service == after.message()


def test_event_of_a_removed_service_contains_its_last_state() -> None:
    before = record()
    subject = change(before, None)
    assert (subject.name, subject.is_notice) == ("a", False)
    assert parse_frame(subject.event_frame()).service == before.message()


def test_notice_contains_an_error_and_no_service() -> None:
    subject = change(error="100 of 200 services fail: größer als 機")
    assert (subject.name, subject.is_notice) == ("", True)
    expected = Event(
        type=EventType.EVENT_TYPE_REGISTRY_ERROR,
        revision=7,
        reason=HEALTH_CHECK,
        error="100 of 200 services fail: größer als 機",
    )
    expected.occurred_at.FromMilliseconds(1_500)
    event = parse_frame(subject.event_frame())
    assert event == expected
    assert not event.HasField("service")


def test_change_without_state_or_error_is_refused() -> None:
    with pytest.raises(ValueError, match="state before"):
        change()


def test_event_is_serialised_once() -> None:
    subject = change(None, record())
    assert subject.event_frame() is subject.event_frame()
    assert subject.unmatched_frame() is subject.unmatched_frame()


def test_size_grows_with_the_error_and_the_records() -> None:
    large = Record(example_service().SerializeToString())
    assert change(error="x" * 500).size - change(error="x").size == 499
    assert change(large, large).size > change(None, large).size > change(error="x").size > 0


def test_snapshot_event_contains_state_revision_and_update_time() -> None:
    service = small_service("a", revision=3)
    service.updated_at.FromSeconds(9)
    event = parse_frame(snapshot_frame(Record(service.SerializeToString())))
    assert event == Event(
        type=EventType.EVENT_TYPE_SERVICE_SNAPSHOT, service=service, revision=3, occurred_at=service.updated_at
    )
