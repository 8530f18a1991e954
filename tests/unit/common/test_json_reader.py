"""Documents are read strictly, and each violation is reported with its path."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.service_pb2 import Service
from ossa_common.json_reader import read_service
from ossa_common.json_shape import MAX_STRUCT_DEPTH
from ossa_common.json_values import MAX_VALUES
from ossa_common.violations import MAX_VIOLATIONS, Violation
from registry_server.model.document import service_document
from registry_server.model.validation import service_violations
from tests.support.documents import FULL, build_service, full, service_from_document


def violations_of(document: object) -> list[Violation]:
    return read_service(document)[1]


def test_every_field_is_read() -> None:
    expected = full()
    for field in ("registered_at", "updated_at", "revision", "maintenance"):
        expected.ClearField(field)
    expected.health.ClearField("status_changed_at")
    assert service_from_document(FULL) == expected


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("2026-11-24T05:00:00Z", 1_795_496_400, 0),
        ("2026-11-24T05:00:00.5Z", 1_795_496_400, 500_000_000),
        ("2026-11-24T05:00:00.123456789Z", 1_795_496_400, 123_456_789),
        ("2026-11-24T06:30:00.000+01:30", 1_795_496_400, 0),
        ("1969-12-31T23:59:59.250Z", -1, 250_000_000),
    ],
)
def test_times_are_read(text: str, seconds: int, nanos: int) -> None:
    last_check = service_from_document({"health": {"lastCheck": text}}).health.last_check
    assert (last_check.seconds, last_check.nanos) == (seconds, nanos)


def test_null_means_absent() -> None:
    nothing = dict.fromkeys(FULL)
    assert service_from_document(nothing) == Service()
    hollow = {
        "capabilities": [dict.fromkeys(["name", "version", "inputs", "outputs", "description"])],
        "health": dict.fromkeys(FULL["health"]),
        "metadata": dict.fromkeys(FULL["metadata"]),
        "healthCheck": dict.fromkeys(FULL["healthCheck"]),
    }
    assert service_from_document(hollow) == build_service(capabilities=[{}], health={}, metadata={}, health_check={})


def test_ttl_of_zero_differs_from_no_ttl() -> None:
    assert service_from_document({"ttlSeconds": 0}).HasField("ttl")
    assert not service_from_document({}).HasField("ttl")
    assert service_document(build_service(ttl={}))["ttlSeconds"] == 0


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**53 + 2, 2**63, 10**22, 1e300])
def test_integers_that_a_double_holds_are_kept(number: float) -> None:
    service = service_from_document({"capabilities": [{"name": "c", "inputs": {"maximum": number}}]})
    assert service.capabilities[0].inputs["maximum"] == number


@pytest.mark.parametrize(("schema", "stored"), [(True, {}), (False, {"not": {}}), ({"items": True}, {"items": True})])
def test_boolean_schemas_are_read_as_the_equivalent_objects(schema: object, stored: object) -> None:
    service = service_from_document({"capabilities": [{"name": "c", "inputs": schema, "outputs": schema}]})
    (capability,) = service_document(service)["capabilities"]
    assert (capability["inputs"], capability["outputs"]) == (stored, stored)


@pytest.mark.parametrize("value", ["2026", 5, [], {"a": 1}, "no time"])
def test_output_only_fields_are_ignored(value: object) -> None:
    document = {"registeredAt": value, "updatedAt": value, "revision": value, "health": {"statusChangedAt": value}}
    assert service_from_document(document) == build_service(health={})


BAD: list[tuple[object, str, str]] = [
    (None, "service", "is required: a JSON object"),
    ([], "service", "must be an object, not an array"),
    ("text", "service", "must be an object, not text"),
    ({"nme": "a"}, "nme", "is not a field; did you mean name? The fields are name, endpoint, capabilities"),
    ({"colour": "a"}, "colour", "is not a field; the fields are name, endpoint, capabilities"),
    ({"health_check": {}}, "health_check", "is not a field; did you mean healthCheck? The"),
    ({"name" * 20: 1}, f'["{"name" * 16}"]', "is not a field; the fields are"),
    ({"bad key": 1}, '["bad key"]', "is not a field"),
    ({"nme": None}, "nme", "is not a field"),
    ({1: 2}, "service", "has a key that is the number 1"),
    ({"name": 5}, "name", "must be text, not the number 5"),
    ({"name": True}, "name", "must be text, not a boolean"),
    ({"name": "\ud800"}, "name", "is not Unicode text"),
    ({"endpoint": ["a"]}, "endpoint", "must be text, not an array"),
    ({"version": 1.5}, "version", "must be text, not the number 1.5"),
    ({"version": b"1"}, "version", "must be text, not a bytes"),
    ({"group": {}}, "group", "must be text, not an object"),
    ({"capabilities": {}}, "capabilities", "must be an array, not an object"),
    ({"capabilities": "text-analysis"}, "capabilities", "must be an array, not text"),
    ({"capabilities": [{}, "x"]}, "capabilities[1]", "must be an object, not text"),
    ({"capabilities": [None]}, "capabilities[0]", "must not be null"),
    ({"capabilities": [{}, {"name": 1}]}, "capabilities[1].name", "must be text"),
    ({"capabilities": [{"input": {}}]}, "capabilities[0].input",
     "is not a field; did you mean inputs? The fields are name, version, inputs"),
    ({"capabilities": [{"inputs": []}]}, "capabilities[0].inputs", "must be an object, not an array"),
    ({"capabilities": [{"inputs": {"a": math.nan}}]}, "capabilities[0].inputs.a", "must be a finite number"),
    ({"capabilities": [{"inputs": {"a": [1, math.inf]}}]}, "capabilities[0].inputs.a[1]", "must be a finite number"),
    ({"capabilities": [{"inputs": {"a b": 10**400}}]}, 'capabilities[0].inputs["a b"]', "must be a finite number"),
    ({"capabilities": [{"inputs": {"enum": [2**53, 1_234_567_890_123_456_789]}}]}, "capabilities[0].inputs.enum[1]",
     "would become 1.2345678901234568e+18 as a 64-bit float; send it as text"),
    ({"capabilities": [{"outputs": {"not": {"maximum": -(2**53) - 1}}}]}, "capabilities[0].outputs.not.maximum",
     "would become -9007199254740992 as a 64-bit float"),
    ({"health": {"details": {"offset": 2**63 - 1}}}, "health.details.offset", "as a 64-bit float"),
    ({"health": {"details": True}}, "health.details", "must be an object, not a boolean"),
    ({"capabilities": [{"outputs": {"a": "\ud800"}}]}, "capabilities[0].outputs.a", "is not Unicode text"),
    ({"capabilities": [{"outputs": {"\ud800": 1}}]}, 'capabilities[0].outputs["\\ud800"]', "the key is not Unicode"),
    ({"capabilities": [{"outputs": {"a": {1: 2}}}]}, "capabilities[0].outputs.a", "keys must be text"),
    ({"capabilities": [{"outputs": {"a": b""}}]}, "capabilities[0].outputs.a", "must be text, not a bytes"),
    ({"health": "healthy"}, "health", "must be an object, not text"),
    ({"health": {"status": "HEALTHY"}}, "health.status",
     "'HEALTHY' is not a status; use one of healthy, unhealthy, degraded, unknown, maintenance"),
    ({"health": {"status": ""}}, "health.status", "is not a status"),
    ({"health": {"status": 1}}, "health.status", "must be text, not the number 1"),
    ({"health": {"lastCheck": 1_795_496_400}}, "health.lastCheck", "must be text"),
    ({"health": {"lastCheck": "yesterday"}}, "health.lastCheck", "'yesterday' is not a time such as 2026-11-24T05:0"),
    ({"health": {"lastCheck": ""}}, "health.lastCheck", "'' is not a time"),
    ({"health": {"lastCheck": "2026-11-24"}}, "health.lastCheck", "is not a time"),
    ({"health": {"lastCheck": "2026-11-24T05:00:00"}}, "health.lastCheck", "is not a time"),
    ({"health": {"lastCheck": "2026-02-30T05:00:00Z"}}, "health.lastCheck", "is not a time"),
    ({"health": {"lastCheck": "2026-11-24T05:00:60Z"}}, "health.lastCheck", "is not a time"),
    ({"health": {"lastCheck": "2026-11-24T05:00:00+99:00"}}, "health.lastCheck", "is not a time"),
    ({"health": {"responseTime": "12ms"}}, "health.responseTime", "must be a number, not text"),
    ({"health": {"responseTime": False}}, "health.responseTime", "must be a number, not a boolean"),
    ({"health": {"responseTime": math.nan}}, "health.responseTime", "must be a finite number"),
    ({"health": {"responseTime": 1e308}}, "health.responseTime", "is too long"),
    ({"health": {"responseTime": 10**30}}, "health.responseTime", "is too long"),
    ({"health": {"details": "fine"}}, "health.details", "must be an object, not text"),
    ({"health": {"error": None, "problem": "x"}}, "health.problem", "is not a field"),
    ({"metadata": []}, "metadata", "must be an object, not an array"),
    ({"metadata": {"tags": "ai,nlp"}}, "metadata.tags", "must be an array, not text"),
    ({"metadata": {"tags": ["ai", 5]}}, "metadata.tags[1]", "must be text, not the number 5"),
    ({"metadata": {"tags": [None]}}, "metadata.tags[0]", "must not be null"),
    ({"metadata": {"labels": ["a"]}}, "metadata.labels", "must be an object, not an array"),
    ({"metadata": {"labels": {"a b": 1}}}, 'metadata.labels["a b"]', "must be text, not the number 1"),
    ({"metadata": {"labels": {"a": None}}}, 'metadata.labels["a"]', "must not be null"),
    ({"metadata": {"labels": {"\udfff": "x"}}}, 'metadata.labels["\\udfff"]', "is not Unicode text"),
    ({"metadata": {"author": 0}}, "metadata.author", "must be text, not the number 0"),
    ({"metadata": {"Author": "x"}}, "metadata.Author", "is not a field"),
    ({"healthCheck": "http"}, "healthCheck", "must be an object, not text"),
    ({"healthCheck": {"type": "HTTP"}}, "healthCheck.type",
     "'HTTP' is not a kind of probe; use one of http, grpc, tcp, heartbeat, none"),
    ({"healthCheck": {"type": ""}}, "healthCheck.type", "is not a kind of probe"),
    ({"healthCheck": {"type": 5}}, "healthCheck.type", "must be text"),
    ({"healthCheck": {"path": "/h"}}, "healthCheck.path", 'is only allowed with "type":"http"'),
    ({"healthCheck": {"type": "tcp", "headers": {}}}, "healthCheck.headers", 'is only allowed with "type":"http"'),
    ({"healthCheck": {"type": "http", "service": "s"}}, "healthCheck.service", 'is only allowed with "type":"grpc"'),
    ({"healthCheck": {"type": "http", "path": 1}}, "healthCheck.path", "must be text"),
    ({"healthCheck": {"type": "http", "headers": {"x": 1}}}, 'healthCheck.headers["x"]', "must be text"),
    ({"healthCheck": {"type": "http", "expectedStatuses": 200}}, "healthCheck.expectedStatuses", "must be an array"),
    ({"healthCheck": {"type": "http", "expectedStatuses": [200, "204"]}}, "healthCheck.expectedStatuses[1]",
     "must be a whole number of 32 bits, not text"),
    ({"healthCheck": {"type": "http", "expectedStatuses": [None]}}, "healthCheck.expectedStatuses[0]",
     "must not be null"),
    ({"healthCheck": {"type": "http", "expectedStatuses": [200.5]}}, "healthCheck.expectedStatuses[0]", "200.5"),
    ({"healthCheck": {"failureThreshold": 2**31}}, "healthCheck.failureThreshold", "not the number 2147483648"),
    ({"healthCheck": {"failureThreshold": True}}, "healthCheck.failureThreshold", "not a boolean"),
    ({"healthCheck": {"successThreshold": 10**500}}, "healthCheck.successThreshold", "not a number of this size"),
    ({"healthCheck": {"successThreshold": math.inf}}, "healthCheck.successThreshold", "not a number of this size"),
    ({"healthCheck": {"intervalMs": "1s"}}, "healthCheck.intervalMs", "must be a number, not text"),
    ({"healthCheck": {"timeoutMs": []}}, "healthCheck.timeoutMs", "must be a number, not an array"),
    ({"healthCheck": {"degradedAfterMs": -math.inf}}, "healthCheck.degradedAfterMs", "must be a finite number"),
    ({"healthCheck": {"interval": 5}}, "healthCheck.interval", "is not a field"),
    ({"ttlSeconds": "300"}, "ttlSeconds", "must be a number, not text"),
    ({"draining": "yes"}, "draining", "must be true or false, not text"),
    ({"ttlSeconds": 1e-12}, "ttlSeconds", "is shorter than a nanosecond"),
    ({"ttl": 300}, "ttl", "is not a field"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "field", "reason"), BAD, ids=[f"{index}-{row[1]}" for index, row in enumerate(BAD)]
)
def test_value_of_the_wrong_shape_is_reported_with_its_path(document: object, field: str, reason: str) -> None:
    (violation,) = violations_of(document)
    assert violation.field == field
    assert reason in violation.description


def test_all_violations_are_reported() -> None:
    document = {
        "name": 5,
        "extra": 1,
        "capabilities": [{"version": 2}, 7],
        "health": {"status": "fine", "responseTime": "fast"},
        "metadata": {"tags": [1, "ok", 2]},
        "healthCheck": {"type": "udp", "path": "/"},
        "ttlSeconds": True,
    }
    assert [violation.field for violation in violations_of(document)] == [
        "extra",
        "name",
        "capabilities[0].version",
        "capabilities[1]",
        "health.status",
        "health.responseTime",
        "metadata.tags[0]",
        "metadata.tags[2]",
        "healthCheck.type",
        "ttlSeconds",
    ]


def test_number_of_violations_is_limited() -> None:
    assert len(violations_of({f"k{index}": 1 for index in range(1_000)})) == MAX_VIOLATIONS


def nest(levels: int, *, lists: bool) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels - 1):
        value = [value] if lists else {"k": value}
    return {"k": value}


@pytest.mark.parametrize("lists", [False, True])
def test_structs_may_be_as_deep_as_validation_allows(lists: bool) -> None:  # noqa: FBT001
    deepest = {"name": "a", "capabilities": [{"name": "c", "inputs": nest(MAX_STRUCT_DEPTH, lists=lists)}]}
    service = service_from_document(deepest)
    assert not [each for each in service_violations(service) if "inputs" in each.field]
    assert service_document(service)["capabilities"][0]["inputs"] == nest(MAX_STRUCT_DEPTH, lists=lists)
    (violation,) = violations_of({"health": {"details": nest(MAX_STRUCT_DEPTH + 1, lists=lists)}})
    assert violation.field.startswith("health.details.k")
    assert violation.description == "is nested more than 32 levels deep; reduce the nesting"


@pytest.mark.parametrize("lists", [False, True])
def test_deep_nesting_does_not_overflow_the_stack(lists: bool) -> None:  # noqa: FBT001
    hostile = nest(100_000, lists=lists)
    assert len(violations_of({"capabilities": [{"inputs": hostile}], "health": {"details": hostile}})) == 2
    assert len(violations_of({"name": hostile, "health": hostile, "metadata": {"tags": [hostile]}})) == 3


def test_number_of_values_is_limited() -> None:
    """YAML aliases can multiply the values of a small file."""
    shared: dict[str, Any] = {"v": [0] * 1_000}
    multiplied = {"v": [shared] * (MAX_VALUES // 1_000 + 1)}
    (violation,) = violations_of({"capabilities": [{"name": "c", "inputs": multiplied}]})
    assert violation.field.startswith("capabilities[0].inputs.v[")
    assert violation.description == "is too large: a service may have at most 32768 values"
    (violation,) = violations_of({"capabilities": [{"name": "c", "inputs": shared}] * 100})
    assert violation.field == "capabilities[32].inputs.v"
    looped: dict[str, Any] = {}
    looped["i"] = looped
    (violation,) = violations_of({"health": {"details": looped}})
    assert violation.description.startswith("is nested more than 32 levels deep")


def test_hint_is_added_where_a_number_should_be_text() -> None:
    _, violations = read_service({"name": 1.1, "version": True, "group": []}, number_hint="; put it in quotes")
    assert [description for _, description in violations] == [
        "must be text, not the number 1.1; put it in quotes",
        "must be text, not a boolean; put it in quotes",
        "must be text, not an array",
    ]


keys = st.sampled_from([*FULL, *FULL["health"], *FULL["metadata"], *FULL["healthCheck"], "inputs"]) | st.text(
    max_size=3
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["http", "grpc", "healthy", "2026-11-24T05:00:00Z", "\ud800"])
    | st.binary(max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=30,
)


@given(anything)
def test_any_document_is_read_or_refused(document: object) -> None:
    service, violations = read_service(document)
    for violation in violations:
        violation.field.encode()
        violation.description.encode()
    if violations:
        return
    assert isinstance(service_violations(service), list)
    json.dumps(service_document(service), allow_nan=False)


@pytest.mark.parametrize("member", ["tags", "labels"])
def test_long_lists_and_maps_are_not_read(member: str) -> None:
    content: Any = {"tags": ["a"] * 1_001, "labels": {f"k{i}": "" for i in range(1_001)}}[member]
    assert violations_of({"metadata": {member: content}}) == [
        (f"metadata.{member}", "has 1001 items; at most 1000 are read")
    ]


@pytest.mark.parametrize("repetition", [1, 2])
def test_repeated_schemas_are_read_exactly(repetition: int) -> None:
    del repetition
    values: tuple[Any, ...] = (1, True, 0, False, None, "1", 1.5, [], {}, [1, {"a": True}])
    for value in values:
        schema = {"default": value}
        capability = {"name": "a", "version": "1", "inputs": schema, "outputs": schema}
        found, violations = read_service({"name": "a", "capabilities": [capability]})
        assert not violations
        stored = service_document(found)["capabilities"][0]
        assert repr((stored["inputs"], stored["outputs"])) == repr((schema, schema))


def test_values_of_repeated_schemas_are_counted() -> None:
    schema = {"enum": list(range(1_000))}
    capability = {"name": "a", "version": "1", "inputs": schema}
    for count, valid in ((30, True), (33, False)):
        _, violations = read_service({"name": "a", "capabilities": [capability] * count})
        assert (not violations) == valid
