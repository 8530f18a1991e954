import pytest

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsResponse
from ossa.registry.v1.service_pb2 import HealthStatus, Service
from registry_server.catalog.change import Change, WatchEvent, snapshot_event
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


def parse_event(value: WatchEvent) -> Event:
    """Return the message of an event, after checking that the event's values equal it."""
    [event] = WatchEventsResponse.FromString(value.frame).events
    assert (value.type, value.reason, value.revision) == (event.type, event.reason, event.revision)
    assert (value.previous_health, value.error) == (event.previous_health, event.error)
    assert value.at_ms == event.occurred_at.ToMilliseconds()
    assert (value.record.message() if value.record else Service()) == event.service
    return event


def test_event_contains_the_new_state_and_the_previous_health() -> None:
    before, after = record(status=HealthStatus.HEALTH_STATUS_HEALTHY), record(revision=7)
    subject = change(before, after)
    event = parse_event(subject.event(matches=True))
    assert (subject.name, subject.is_notice) == ("a", False)
    assert event.service == after.message()
    assert event.previous_health == HealthStatus.HEALTH_STATUS_HEALTHY
    assert (event.type, event.revision, event.reason) == (subject.type, 7, HEALTH_CHECK)
    assert event.occurred_at.ToMilliseconds() == 1_500
    assert not event.error
    assert parse_event(subject.event(matches=False)).type == EventType.EVENT_TYPE_SERVICE_UNMATCHED
    assert parse_event(subject.event(matches=False)).service == after.message()


def test_event_of_a_removed_service_contains_its_last_state() -> None:
    before = record()
    subject = change(before, None)
    assert (subject.name, subject.is_notice) == ("a", False)
    assert parse_event(subject.event(matches=False)).service == before.message()


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
    event = parse_event(subject.event(matches=True))
    assert event == expected
    assert not event.HasField("service")


def test_change_without_state_or_error_is_refused() -> None:
    with pytest.raises(ValueError, match="state before"):
        change()


def test_event_is_serialised_once() -> None:
    subject = change(None, record())
    assert subject.event(matches=True) is subject.event(matches=True)
    assert subject.event(matches=False) is subject.event(matches=False)


def test_size_grows_with_the_error_and_the_records() -> None:
    large = Record(example_service().SerializeToString())
    assert change(error="x" * 500).size - change(error="x").size == 499
    assert change(large, large).size > change(None, large).size > change(error="x").size > 0


def test_snapshot_event_contains_state_revision_and_update_time() -> None:
    service = small_service("a", revision=3)
    service.updated_at.FromSeconds(9)
    event = parse_event(snapshot_event(Record(service.SerializeToString())))
    assert event == Event(
        type=EventType.EVENT_TYPE_SERVICE_SNAPSHOT, service=service, revision=3, occurred_at=service.updated_at
    )
