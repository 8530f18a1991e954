from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.service_pb2 import ServiceFilter, TagMatch
from ossa_common.violations import Violation
from registry_server.catalog.index import Index
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record, capability_term, group_term, tag_term
from tests.support.samples import small_service

NAMES = st.sampled_from(["alpha", "beta", "gamma", "delta"])
TAGS = st.lists(st.sampled_from(["x", "y", "z"]), unique=True)
VERSIONS = st.sampled_from(["", "1.0.0", "2.0.0"])

T = TypeVar("T")


def record(name: str, **fields: Any) -> Record:
    return Record(small_service(name, **{"group": name, **fields}).SerializeToString())


@st.composite
def records(draw: st.DrawFn, name: str | None = None) -> Record:
    offered = draw(st.lists(st.tuples(st.sampled_from(["read", "write"]), VERSIONS), unique=True, max_size=3))
    return record(
        name or draw(NAMES),
        capabilities=[{"name": capability, "version": version} for capability, version in offered],
        metadata={"tags": draw(TAGS), "environment": draw(st.sampled_from(["", "test"]))},
        health={"status": draw(st.integers(1, 5))},
    )


FILTERS = st.builds(
    ServiceFilter,
    capability=st.sampled_from(["", "read"]),
    tags=TAGS,
    tag_match=st.sampled_from(TagMatch.values()),
    health=st.lists(st.integers(1, 5), max_size=3),
    environment=st.sampled_from(["", "test"]),
)


def compiled(message: ServiceFilter) -> Filter:
    violations = list[Violation]()
    filter_ = compile_filter(message, "filter", violations)
    assert not violations
    return filter_


def indexed(*held: Record) -> Index:
    index = Index()
    for each in held:
        index.add_record(each)
    return index


def result_of(steps: Generator[None, None, T]) -> T:
    """Run a computation and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def assert_index_equals(index: Index, held: Mapping[str, Record]) -> None:
    """Assert that the index agrees with the terms of all records."""
    for kind in "htclkvge":
        terms = {term for each in held.values() for term in each.terms if term[0] == kind}
        if kind == "c":
            assert index.capabilities.after("", 1_000) == sorted(term[2:] for term in terms)
        assert index.distinct(kind) == len(terms)
        for term in terms:
            names = {name for name, each in held.items() if term in each.terms}
            assert set(index.names(term)) == names
            assert index.count(term) == len(names)
    for capability in ("read", "write"):
        versions = {version for each in held.values() for version in each.capability_versions(capability)}
        assert set(index.capability_versions(capability)) == versions


@given(st.lists(st.tuples(NAMES, st.none() | records())))
def test_index_equals_the_records_after_any_changes(steps: list[tuple[str, Record | None]]) -> None:
    index, held = Index(), dict[str, Record]()
    for name, after in steps:
        before = held.pop(after.name if after else name, None)
        if after is not None and before is not None:
            index.replace_record(before, after)
        elif after is not None:
            index.add_record(after)
        elif before is not None:
            index.remove_record(before)
        if after is not None:
            held[after.name] = after
        assert_index_equals(index, held)


@given(st.lists(records(), unique_by=lambda each: each.name))
def test_emptied_index_keeps_no_postings(held: list[Record]) -> None:
    index = indexed(*held)
    for each in held:
        index.remove_record(each)

    assert not any(index._postings.values())
    assert not index._capability_versions


@given(st.lists(records(), unique_by=lambda each: each.name), FILTERS)
def test_candidates_are_exactly_the_services_with_the_terms(held: list[Record], message: ServiceFilter) -> None:
    filter_ = compiled(message)

    candidates = result_of(indexed(*held).find_candidates(filter_))

    matching = {each.name for each in held if filter_.matches(each)}
    if filter_.required or filter_.any_of:
        assert candidates is not None
        assert set(candidates) == matching
    else:
        assert candidates is None


@given(st.lists(records(), unique_by=lambda each: each.name), records(), FILTERS)
def test_every_later_match_has_one_of_the_anchors(held: list[Record], later: Record, message: ServiceFilter) -> None:
    filter_ = compiled(message)

    anchors = indexed(*held).anchors(filter_)

    if filter_.matches(later) and (filter_.required or filter_.any_of):
        assert not set(anchors).isdisjoint(later.terms)


def test_anchors_are_the_rarest_terms() -> None:
    index = indexed(
        record("a", metadata={"tags": ["common", "rare"]}),
        record("b", metadata={"tags": ["common"]}),
        record("c", metadata={"tags": ["common", "other"]}),
    )

    all_of = ServiceFilter(tags=["common", "rare"], tag_match=TagMatch.TAG_MATCH_ALL)
    assert index.anchors(compiled(all_of)) == (tag_term("rare"),)
    assert index.anchors(compiled(ServiceFilter(tags=["rare", "other"]))) == (tag_term("other"), tag_term("rare"))
    # Three services have one of the two tags; one is in the group.
    any_of = ServiceFilter(tags=["common", "rare"], group="b")
    assert index.anchors(compiled(any_of)) == (group_term("b"),)


def test_filter_without_terms_has_no_anchors() -> None:
    assert indexed(record("a")).anchors(compiled(ServiceFilter(name_pattern="a"))) == ()


def test_posting_of_one_service_is_its_whole_name() -> None:
    index = indexed(record("alpha"), record("beta"))

    assert list(index.names(group_term("alpha"))) == ["alpha"]
    assert index.count(group_term("alpha")) == 1


def test_unknown_term_has_no_names() -> None:
    index = indexed(record("alpha"))

    assert list(index.names(capability_term("absent"))) == []
    assert index.count(capability_term("absent")) == 0
    assert index.distinct("c") == 0
    assert list(index.capability_versions("absent")) == []
