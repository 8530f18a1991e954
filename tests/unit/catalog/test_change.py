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


def told(frame: bytes) -> Event:
    [event] = WatchEventsResponse.FromString(frame).events
    return event


def test_a_change_tells_what_a_service_became_and_what_it_was() -> None:
    before, after = record(status=HealthStatus.HEALTH_STATUS_HEALTHY), record(revision=7)
    subject = change(before, after)
    event = told(subject.event_frame())
    assert (subject.name, subject.is_notice) == ("a", False)
    assert event.service == after.message()
    assert event.previous_health == HealthStatus.HEALTH_STATUS_HEALTHY
    assert (event.type, event.revision, event.reason) == (subject.type, 7, HEALTH_CHECK)
    assert event.occurred_at.ToMilliseconds() == 1_500
    assert not event.error
    assert told(subject.unmatched_frame()).type == EventType.EVENT_TYPE_SERVICE_UNMATCHED
    assert told(subject.unmatched_frame()).service == after.message()


def test_of_a_service_that_is_gone_it_tells_the_last_state() -> None:
    before = record()
    subject = change(before, None)
    assert (subject.name, subject.is_notice) == ("a", False)
    assert told(subject.event_frame()).service == before.message()


def test_a_notice_tells_what_is_wrong_and_is_of_no_service() -> None:
    subject = change(error="100 of 200 services fail: größer als 機")
    assert (subject.name, subject.is_notice) == ("", True)
    expected = Event(
        type=EventType.EVENT_TYPE_REGISTRY_ERROR,
        revision=7,
        reason=HEALTH_CHECK,
        error="100 of 200 services fail: größer als 機",
    )
    expected.occurred_at.FromMilliseconds(1_500)
    event = told(subject.event_frame())
    assert event == expected
    assert not event.HasField("service")


def test_a_change_of_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="state before"):
        change()


def test_it_is_serialised_once() -> None:
    subject = change(None, record())
    assert subject.event_frame() is subject.event_frame()
    assert subject.unmatched_frame() is subject.unmatched_frame()


def test_its_size_grows_with_what_it_keeps() -> None:
    large = Record(example_service().SerializeToString())
    assert change(error="x" * 500).size - change(error="x").size == 499
    assert change(large, large).size > change(None, large).size > change(error="x").size > 0


def test_a_snapshot_tells_the_state_of_a_service_and_when_it_changed() -> None:
    service = small_service("a", revision=3)
    service.updated_at.FromSeconds(9)
    event = told(snapshot_frame(Record(service.SerializeToString())))
    assert event == Event(
        type=EventType.EVENT_TYPE_SERVICE_SNAPSHOT, service=service, revision=3, occurred_at=service.updated_at
    )
