from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import ServiceFilter
from ossa_common.violations import Violation
from registry_server.catalog.anchors import Anchors
from registry_server.catalog.change import Change
from registry_server.catalog.index import Index
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record
from tests.support.samples import small_service


def compiled(**fields: Any) -> Filter:
    violations = list[Violation]()
    filter_ = compile_filter(ServiceFilter(**fields), "filter", violations)
    assert not violations
    return filter_


def record(name: str, **fields: Any) -> Record:
    return Record(small_service(name, **{"group": name, **fields}).SerializeToString())


def change(before: Record | None, after: Record | None, error: str = "") -> Change:
    return Change(
        revision=1,
        type=EventType.EVENT_TYPE_SERVICE_UPDATED,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
        at_ms=0,
        before=before,
        after=after,
        error=error,
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
def test_every_change_that_affects_a_filter_marks_one_of_its_anchors(filters: list[Any], changes: list[Change]) -> None:
    anchors = Anchors(Index())
    subscribers = [(filter_, anchors.subscribe(filter_)) for filter_ in (compiled(**fields) for fields in filters)]

    for each in changes:
        tick = anchors.tick
        marked = anchors.mark_changes([each])

        for filter_, own in subscribers:
            if any(filter_.match_change(each.before, each.after)):
                assert marked & set(own)
            assert anchors.changed_since(own, tick) == bool(marked & set(own))
            assert not anchors.changed_since(own, anchors.tick)


def test_change_marks_only_anchors_that_it_has() -> None:
    anchors = Anchors(Index())
    matching, other = [anchors.subscribe(compiled(group=name)) for name in "ab"]

    anchors.mark_changes([change(None, record("a"))])

    assert anchors.changed_since(matching, 0)
    assert not anchors.changed_since(other, 0)


def test_notice_marks_only_subscribers_to_notices() -> None:
    anchors = Anchors(Index())
    queries = [anchors.subscribe(compiled(**fields)) for fields in ({}, {"group": "a"})]
    watches = [anchors.subscribe(compiled(**fields), notices=True) for fields in ({}, {"group": "a"})]

    anchors.mark_changes([change(None, None, "trouble")])

    assert not any(anchors.changed_since(own, 0) for own in queries)
    assert all(anchors.changed_since(own, 0) for own in watches)


def test_changes_of_one_state_share_a_tick() -> None:
    anchors = Anchors(Index())
    own = anchors.subscribe(compiled(group="a"))

    anchors.mark_changes([change(None, record("a")), change(None, record("b"))])

    assert anchors.tick == 1
    assert anchors.changed_since(own, 0)


@given(st.lists(FIELDS, max_size=6))
def test_removed_subscribers_leave_no_entries(filters: list[Any]) -> None:
    anchors = Anchors(Index())
    subscribers = [anchors.subscribe(compiled(**fields)) for fields in filters]
    everything = change(None, record("a", metadata={"tags": ["x", "y", "z"]}, health={"status": 1}))
    anchors.mark_changes([everything])

    for own in subscribers:
        anchors.unsubscribe(own)

    assert len(anchors) == 0
    assert not anchors._changed_at
