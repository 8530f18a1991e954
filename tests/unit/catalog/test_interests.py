from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import ServiceFilter
from ossa_common.violations import Violation
from registry_server.catalog.change import Change
from registry_server.catalog.index import Index
from registry_server.catalog.interests import InterestTable
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record
from tests.support.samples import small_service


class RecordingInterest:
    """An interest that records its notifications."""

    def __init__(self, **fields: Any) -> None:
        violations = list[Violation]()
        self._filter = compile_filter(ServiceFilter(**fields), "filter", violations)
        assert not violations
        self.received: list[tuple[Change, bool, bool]] = []

    @property
    def filter(self) -> Filter:
        return self._filter

    def on_change(self, change: Change, *, matched: bool, matches: bool) -> None:
        self.received.append((change, matched, matches))


def record(name: str, **fields: Any) -> Record:
    return Record(small_service(name, **{"group": name, **fields}).SerializeToString())


def change(before: Record | None, after: Record | None) -> Change:
    return Change(
        revision=1,
        type=EventType.EVENT_TYPE_SERVICE_UPDATED,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
        at_ms=0,
        before=before,
        after=after,
    )


STATES = st.none() | st.builds(
    record,
    st.just("a"),
    metadata=st.fixed_dictionaries({"tags": st.lists(st.sampled_from("xyz"), unique=True)}),
    health=st.fixed_dictionaries({"status": st.integers(1, 3)}),
)
CHANGES = st.builds(change, STATES, STATES.filter(bool)) | st.builds(change, STATES.filter(bool), STATES)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "tags": st.lists(st.sampled_from("xyz"), max_size=2),
        "health": st.lists(st.integers(1, 3), max_size=2),
        "name_pattern": st.sampled_from(["a", "b"]),
        "group": st.sampled_from(["a", "b"]),
    },
)


@given(st.lists(FIELDS, max_size=6), st.lists(CHANGES, max_size=6))
def test_exactly_the_affected_interests_are_notified(filters: list[Any], changes: list[Change]) -> None:
    table = InterestTable(Index())
    interests = [RecordingInterest(**fields) for fields in filters]
    for interest in interests:
        table.add_interest(interest)

    for each in changes:
        table.publish_change(each)

    for interest in interests:
        expected = []
        for each in changes:
            matched = each.before is not None and interest.filter.matches(each.before)
            matches = each.after is not None and interest.filter.matches(each.after)
            if matched or matches:
                expected.append((each, matched, matches))
        assert interest.received == expected


def test_interest_receives_services_registered_later() -> None:
    table, interest = InterestTable(Index()), RecordingInterest(tags=["rare"])
    table.add_interest(interest)
    arrival = change(None, record("a", metadata={"tags": ["rare"]}))

    table.publish_change(arrival)

    assert interest.received == [(arrival, False, True)]


def test_interest_with_several_terms_is_notified_once() -> None:
    table, interest = InterestTable(Index()), RecordingInterest(tags=["x", "y"])
    table.add_interest(interest)

    table.publish_change(change(record("a", metadata={"tags": ["x", "y"]}), record("a", metadata={"tags": ["y", "x"]})))

    assert len(interest.received) == 1


def test_change_is_checked_only_against_likely_interests() -> None:
    table = InterestTable(Index())
    matching, other = RecordingInterest(group="a"), RecordingInterest(group="b")
    for interest in (matching, other):
        table.add_interest(interest)

    assert list(table._candidates(change(None, record("a")))) == [matching]


@given(st.lists(FIELDS, max_size=6))
def test_removed_interest_is_not_notified_and_leaves_no_entries(filters: list[Any]) -> None:
    table = InterestTable(Index())
    interests = [RecordingInterest(**fields) for fields in filters]
    for interest in interests:
        table.add_interest(interest)
    assert len(table) == len(interests)

    for interest in interests:
        table.remove_interest(interest)
        table.remove_interest(interest)  # a second removal has no effect
    table.publish_change(change(None, record("a", metadata={"tags": ["x", "y", "z"]}, health={"status": 1})))

    assert not any(interest.received for interest in interests)
    assert len(table) == 0
    assert not table._by_term
    assert not table._unanchored


def test_interest_can_remove_itself_during_a_notification() -> None:
    table = InterestTable(Index())

    class SelfRemovingInterest(RecordingInterest):
        def on_change(self, change: Change, *, matched: bool, matches: bool) -> None:
            super().on_change(change, matched=matched, matches=matches)
            table.remove_interest(self)

    removed, kept = SelfRemovingInterest(), RecordingInterest()
    for interest in (removed, kept):
        table.add_interest(interest)

    for _ in range(2):
        table.publish_change(change(None, record("a")))

    assert len(removed.received) == 1
    assert len(kept.received) == 2
