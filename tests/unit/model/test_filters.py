import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.service_pb2 import Service, ServiceFilter, TagMatch
from ossa_common.json_shape import TEXT_FILTERS
from ossa_common.violations import Violation
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record
from tests.support.samples import example_service, small_service


def compiled(message: ServiceFilter) -> Filter:
    violations = list[Violation]()
    filter_ = compile_filter(message, "filter", violations)
    assert violations == []
    return filter_


def filtering(**fields: Any) -> ServiceFilter:
    return ServiceFilter(**fields)


def record(service: Service) -> Record:
    if not service.group:
        service.group = service.name
    return Record(service.SerializeToString())


def example() -> Service:
    """Return the example service with a group and a healthy status."""
    service = example_service()
    service.group = "text"
    service.health.status = 1  # type: ignore[assignment]
    return service


# Each kind of condition, with the example service.

MATCHING = {
    "empty filter": {},
    "name": {"name_pattern": "^ai-text-processor$"},
    "part of the name": {"name_pattern": "text"},
    "name in another case": {"name_pattern": "AI-Text"},
    "capability": {"capability": "translate"},
    "capability in its version": {"capability": "translate", "capability_version": "1.4.2"},
    "capability in a range": {"capability": "text-analysis", "capability_version": ">=2 <3"},
    "health": {"health": [1]},
    "any health of several": {"health": [2, 1, 3]},
    "tag": {"tags": ["ai"]},
    "any tag of several": {"tags": ["vision", "nlp"]},
    "any tag, explicitly": {"tags": ["vision", "nlp"], "tag_match": TagMatch.TAG_MATCH_ANY},
    "all tags": {"tags": ["ai", "nlp"], "tag_match": TagMatch.TAG_MATCH_ALL},
    "a tag twice": {"tags": ["ai", "ai"], "tag_match": TagMatch.TAG_MATCH_ALL},
    "all of no tags": {"tag_match": TagMatch.TAG_MATCH_ALL},
    "version": {"version": "2.1.0"},
    "version in a range": {"version": "^2.0"},
    "environment": {"environment": "production"},
    "group": {"group": "text"},
    "label": {"labels": {"region": "eu"}},
    "labels": {"labels": {"region": "eu", "tier": "gold"}},
    "everything": {
        "name_pattern": "processor",
        "capability": "translate",
        "capability_version": "^1",
        "health": [1, 3],
        "tags": ["ai", "x"],
        "version": "~2.1",
        "environment": "production",
        "group": "text",
        "labels": {"tier": "gold"},
    },
}
NOT_MATCHING = {
    "another name": {"name_pattern": "^text"},
    "another capability": {"capability": "text"},
    "capability in another case": {"capability": "Translate"},
    "capability in another version": {"capability": "translate", "capability_version": "2.0.0"},
    "another capability's version": {"capability": "translate", "capability_version": ">=2 <3"},
    "another health": {"health": [2, 3]},
    "another tag": {"tags": ["vision"]},
    "tag in another case": {"tags": ["AI"]},
    "not all tags": {"tags": ["ai", "vision"], "tag_match": TagMatch.TAG_MATCH_ALL},
    "another version": {"version": "2.1"},
    "version outside of the range": {"version": "<2.1"},
    "another environment": {"environment": "prod"},
    "another group": {"group": "ai-text-processor"},
    "another value of a label": {"labels": {"region": "us"}},
    "an empty value of a label": {"labels": {"region": ""}},
    "not all labels": {"labels": {"region": "eu", "zone": "a"}},
    "all but one": {"name_pattern": "text", "tags": ["ai"], "environment": "test"},
}


@pytest.mark.parametrize("fields", MATCHING.values(), ids=MATCHING)
def test_service_matches_if_every_field_matches(fields: dict[str, Any]) -> None:
    assert compiled(filtering(**fields)).matches(record(example()))


@pytest.mark.parametrize("fields", NOT_MATCHING.values(), ids=NOT_MATCHING)
def test_service_does_not_match_if_one_field_does_not(fields: dict[str, Any]) -> None:
    assert not compiled(filtering(**fields)).matches(record(example()))


@pytest.mark.parametrize("field", TEXT_FILTERS)
def test_no_text_field_is_ignored(field: str) -> None:
    filter_ = compiled(filtering(**{"capability": "translate", field: "no-such-value"}))
    assert not filter_.matches(record(example()))


def test_version_that_looks_like_a_range_matches_itself() -> None:
    service = small_service("a", version=">=1 <2", capabilities=[{"name": "read", "version": "1.x"}])

    assert compiled(filtering(version=">=1 <2")).matches(record(service))
    assert compiled(filtering(capability="read", capability_version="1.x")).matches(record(service))


def test_one_matching_version_of_a_capability_is_enough() -> None:
    offered = [{"name": "read", "version": version} for version in ("1.0.0", "nightly", "3.0.0")]
    held = record(small_service("a", capabilities=offered))

    for wanted, matches in (("^1", True), ("^2", False), (">=3", True), ("nightly", True), ("2.0.0", False)):
        assert compiled(filtering(capability="read", capability_version=wanted)).matches(held) is matches


@pytest.mark.parametrize(
    ("fields", "terms_only"),
    [
        ({}, True),
        ({"capability": "read", "capability_version": "1.0.0", "version": "1.0.0", "tags": ["a", "b"]}, True),
        ({"health": [1, 2], "environment": "e", "group": "g", "labels": {"k": "v"}}, True),
        ({"name_pattern": "a"}, False),
        ({"version": "^1"}, False),
        ({"capability": "read", "capability_version": "^1"}, False),
    ],
)
def test_terms_only_is_set_if_terms_express_the_filter(fields: dict[str, Any], terms_only: bool) -> None:  # noqa: FBT001
    assert compiled(filtering(**fields)).terms_only is terms_only


# A naive implementation of the comments in the proto.

VERSIONS = ["1.0.0", "1.5.0", "2.0.0", "next"]
VERSION_FILTERS: dict[str, Callable[[str], bool]] = {
    "": lambda _: True,
    "1.5.0": lambda version: version == "1.5.0",
    "next": lambda version: version == "next",
    "1.5": lambda version: version == "1.5",
    ">=1 <2": lambda version: version in {"1.0.0", "1.5.0"},
    "^2": lambda version: version == "2.0.0",
    "<1.5 || >=2": lambda version: version in {"1.0.0", "2.0.0"},
    "*": lambda version: version not in {"", "next"},
}
PATTERNS = ["", "a", "A", "^b", "a|c", "[bc]$", "^..$", "x*"]

SERVICES = st.builds(
    lambda name, capabilities, **rest: small_service(
        name, capabilities=[{"name": capability, "version": version} for capability, version in capabilities], **rest
    ),
    name=st.sampled_from(["a", "ab", "b", "bc", "C1"]),
    version=st.sampled_from(VERSIONS),
    group=st.sampled_from(["", "a", "g"]),
    capabilities=st.lists(
        st.tuples(st.sampled_from(["read", "write"]), st.sampled_from(["", *VERSIONS])), unique=True, max_size=3
    ),
    health=st.fixed_dictionaries({"status": st.integers(1, 5)}),
    metadata=st.fixed_dictionaries(
        {
            "tags": st.lists(st.sampled_from("xyz"), unique=True),
            "environment": st.sampled_from(["", "test", "prod"]),
            "labels": st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["", "1", "2"])),
        }
    ),
)
FILTERS = st.builds(
    ServiceFilter,
    name_pattern=st.sampled_from(PATTERNS),
    capability=st.sampled_from(["", "read", "write", "other"]),
    capability_version=st.sampled_from([*VERSION_FILTERS]),
    health=st.lists(st.integers(1, 5), max_size=4),
    tags=st.lists(st.sampled_from("xyz"), max_size=3),
    tag_match=st.sampled_from(TagMatch.values()),
    version=st.sampled_from([*VERSION_FILTERS]),
    environment=st.sampled_from(["", "test", "prod"]),
    group=st.sampled_from(["", "a", "g"]),
    labels=st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["", "1", "2"]), max_size=2),
).filter(lambda message: bool(message.capability or not message.capability_version))


def matches_naively(wanted: ServiceFilter, service: Service) -> bool:
    """Return whether every field that is set matches."""
    versions = [offered.version for offered in service.capabilities if offered.name == wanted.capability]
    has_tag = [tag in service.metadata.tags for tag in wanted.tags]
    combine = all if wanted.tag_match == TagMatch.TAG_MATCH_ALL else any
    return all(
        (
            not wanted.name_pattern or re.search(wanted.name_pattern, service.name, re.IGNORECASE) is not None,
            not wanted.capability or bool(versions),
            not wanted.capability_version or any(map(VERSION_FILTERS[wanted.capability_version], versions)),
            not wanted.health or service.health.status in wanted.health,
            not wanted.tags or combine(has_tag),
            VERSION_FILTERS[wanted.version](service.version),
            not wanted.environment or service.metadata.environment == wanted.environment,
            not wanted.group or service.group == wanted.group,
            all(service.metadata.labels.get(key) == value for key, value in wanted.labels.items()),
        )
    )


@given(FILTERS, SERVICES)
def test_filter_matches_like_the_naive_implementation(wanted: ServiceFilter, service: Service) -> None:
    assert compiled(wanted).matches(record(service)) is matches_naively(wanted, service)


@given(FILTERS, SERVICES)
def test_terms_and_remaining_conditions_are_the_filter(wanted: ServiceFilter, service: Service) -> None:
    filter_, held = compiled(wanted), record(service)

    has_terms = set(filter_.required) <= set(held.terms) and all(
        not set(group).isdisjoint(held.terms) for group in filter_.any_of
    )

    assert (has_terms and filter_.matches_beyond_terms(held)) is filter_.matches(held)
    if filter_.terms_only:
        assert has_terms is filter_.matches(held)


# Keys.


def meaning(wanted: ServiceFilter) -> tuple[Any, ...]:
    tags = frozenset(wanted.tags)
    return (
        wanted.name_pattern,
        wanted.capability,
        wanted.capability_version,
        frozenset(wanted.health),
        tags,
        len(tags) > 1 and wanted.tag_match == TagMatch.TAG_MATCH_ALL,
        wanted.version,
        wanted.environment,
        wanted.group,
        frozenset(wanted.labels.items()),
    )


@given(FILTERS, FILTERS)
def test_keys_are_equal_exactly_if_filters_are_equivalent(one: ServiceFilter, other: ServiceFilter) -> None:
    assert (compiled(one).key == compiled(other).key) is (meaning(one) == meaning(other))


@given(FILTERS, st.data())
def test_key_is_independent_of_order_and_repetition(wanted: ServiceFilter, data: st.DataObject) -> None:
    other = ServiceFilter()
    other.CopyFrom(wanted)
    for field in (other.tags, other.health):
        values: list[Any] = list(field)
        repeated = values + data.draw(st.lists(st.sampled_from(values), max_size=3) if values else st.just([]))
        field[:] = data.draw(st.permutations(repeated))
    labels = data.draw(st.permutations(list(wanted.labels.items())))
    other.labels.clear()
    other.labels.update(labels)

    assert compiled(other).key == compiled(wanted).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"group": "a"}, {"environment": "a"}),
        ({"name_pattern": "a"}, {"name_pattern": "A"}),  # equivalent, but equivalent patterns may have different keys
        ({"version": "1.0.0"}, {"capability": "c", "capability_version": "1.0.0"}),
        ({"tags": ["a", "b"]}, {"tags": ["a", "b"], "tag_match": TagMatch.TAG_MATCH_ALL}),
        ({"tags": ["a", "b"]}, {"tags": ["ab"]}),
        ({"labels": {"a": "b"}}, {"labels": {"a": "", "b": ""}}),
        ({"labels": {"a": ""}}, {}),
    ],
)
def test_similar_filters_have_different_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert compiled(filtering(**one)).key != compiled(filtering(**other)).key


def test_key_is_independent_of_unknown_fields() -> None:
    # Field 100 is unknown to this server.
    newer = ServiceFilter.FromString(filtering(group="a").SerializeToString() + b"\xa2\x06\x01x")

    assert compiled(newer).key == compiled(filtering(group="a")).key


# Invalid filters.

REFUSED = {
    "pattern that RE2 does not support": ({"name_pattern": "(?=a)"}, ["name_pattern"]),
    "back-reference": ({"name_pattern": r"(a)\1"}, ["name_pattern"]),
    "broken pattern": ({"name_pattern": "["}, ["name_pattern"]),
    "huge pattern": ({"name_pattern": "((a{100}){100}){100}"}, ["name_pattern"]),
    "large pattern": ({"name_pattern": r"(\pL{500}){2}"}, ["name_pattern"]),
    "long pattern": ({"name_pattern": "a" * 513}, ["name_pattern"]),
    "capability version alone": ({"capability_version": "1.0.0"}, ["capability_version"]),
    "capability range alone": ({"capability_version": "^1"}, ["capability_version"]),
    "bad capability range": ({"capability": "a", "capability_version": ">=1\n"}, ["capability_version"]),
    "bad range": ({"version": ">>1\0"}, ["version"]),
    "long version": ({"version": "1" * 129}, ["version"]),
    "unprintable version": ({"version": "1\n"}, ["version"]),
    "long capability": ({"capability": "c" * 129}, ["capability"]),
    "unprintable capability": ({"capability": "c\0"}, ["capability"]),
    "long environment": ({"environment": "e" * 129}, ["environment"]),
    "unprintable group": ({"group": "\t"}, ["group"]),
    "status unspecified": ({"health": [1, 0]}, ["health[1]"]),
    "unknown status": ({"health": [77, 1, -5]}, ["health[0]", "health[2]"]),
    "many statuses": ({"health": [1] * 9}, ["health"]),
    "empty tag": ({"tags": ["a", ""]}, ["tags[1]"]),
    "long tag": ({"tags": ["t" * 129]}, ["tags[0]"]),
    "many tags": ({"tags": [f"t{i}" for i in range(65)]}, ["tags"]),
    "unknown tag match": ({"tag_match": 9}, ["tag_match"]),
    "bad label key": ({"labels": {"a=b": "c", "": "d"}}, ['labels[""]', 'labels["a=b"]']),
    "long label value": ({"labels": {"a": "v" * 257}}, ['labels["a"]']),
    "many labels": ({"labels": {f"k{i}": "v" for i in range(65)}}, ["labels"]),
    "all at once": (
        {
            "name_pattern": "(",
            "capability": "\n",
            "capability_version": ">\n",
            "health": [0],
            "tags": [""],
            "tag_match": 5,
            "version": "<\n",
            "environment": "\n",
            "group": "\n",
            "labels": {"": ""},
        },
        [
            "capability",
            "capability_version",
            "environment",
            "group",
            "health[0]",
            'labels[""]',
            "name_pattern",
            "tag_match",
            "tags[0]",
            "version",
        ],
    ),
}


@pytest.mark.parametrize(("fields", "bad"), REFUSED.values(), ids=REFUSED)
def test_every_invalid_field_is_reported_with_its_path(fields: dict[str, Any], bad: list[str]) -> None:
    violations = list[Violation]()

    compile_filter(filtering(**fields), "filter", violations)

    assert sorted(violation.field for violation in violations) == [f"filter.{field}" for field in bad]
    assert all(violation.description for violation in violations)


LARGEST = {
    "pattern": {"name_pattern": "a" * 512},
    "version": {"version": "1" * 128},
    "capability": {"capability": "c" * 128},
    "health": {"health": [1, 2, 3, 4, 5, 1, 2, 3]},
    "tags": {"tags": [f"{i:064}" for i in range(64)]},
    "labels": {"labels": {f"{i:0128}": "v" * 256 for i in range(64)}},
}


@pytest.mark.parametrize("fields", LARGEST.values(), ids=LARGEST)
def test_filter_at_its_limits_is_accepted(fields: dict[str, Any]) -> None:
    compiled(filtering(**fields))


def test_hostile_pattern_matches_in_linear_time() -> None:
    filter_ = compiled(filtering(name_pattern="^(a*)*(a|b|aa|ab)*c$"))

    assert not filter_.matches(record(small_service("a" * 127 + "d")))
