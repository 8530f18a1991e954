import json
import math
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.errors import InvalidRequest, Violation
from registry_server.model.document import (
    STATUS_BY_WORD,
    STATUS_WORDS,
    encode_document_prefix,
    health_document,
    service_document,
)
from registry_server.model.document_reader import service_from_document
from registry_server.model.validation import MAX_STRUCT_DEPTH, MAX_VIOLATIONS, service_violations

EXAMPLE = {
    "name": "ai-text-processor",
    "endpoint": "https://ai-service.company.com:8080",
    "version": "2.1.0",
    "capabilities": [
        {
            "name": "text-analysis",
            "version": "2.0.0",
            "description": "Advanced text analysis with sentiment detection",
        }
    ],
    "health": {"status": "unknown", "lastCheck": "2026-11-24T05:00:00.000Z"},
    "metadata": {"tags": ["ai", "nlp"], "environment": "production"},
}


def build_service(**fields: Any) -> Service:
    """Return a service from plain values, which protobuf accepts but its type stubs do not."""
    return Service(**fields)


def full() -> Service:
    """Return a service with every field set."""
    return build_service(
        name="a",
        endpoint="http://a",
        capabilities=[
            {
                "name": "c",
                "version": "1",
                "inputs": {"z": None, "type": "object", "a": [1, 2.5, True, "x", {"b": []}], "o": {}},
                "outputs": {"n": -3},
                "description": "d",
            },
            {"name": "bare"},
        ],
        version="1.0",
        health={
            "status": "HEALTH_STATUS_DEGRADED",
            "last_check": {"seconds": 1_795_496_400, "nanos": 1_000_000},
            "response_time": {"nanos": 12_500_000},
            "details": {"queue": 5},
            "error": "slow",
            "status_changed_at": {"seconds": 1_795_496_399, "nanos": 999_000_000},
        },
        metadata={
            "description": "D",
            "tags": ["t"],
            "author": "A",
            "documentation": "http://docs",
            "environment": "E",
            "labels": {"z": "1", "a": "ü"},
        },
        registered_at={"seconds": 1_795_496_400},
        updated_at={"seconds": 1_795_496_401, "nanos": 123_999_999},
        revision=7,
        group="g",
        health_check={
            "http": {"path": "/h", "method": "HEAD", "headers": {"B": "2", "A": "1"}, "expected_statuses": [200, 204]},
            "interval": {"seconds": 10},
            "timeout": {"nanos": 1_500_000},
            "failure_threshold": 4,
            "success_threshold": 5,
            "degraded_after": {"nanos": 250_000_000},
        },
        ttl={"seconds": 30, "nanos": 500_000_000},
    )


FULL: dict[str, Any] = {
    "name": "a",
    "endpoint": "http://a",
    "capabilities": [
        {
            "name": "c",
            "version": "1",
            "inputs": {"a": [1, 2.5, True, "x", {"b": []}], "o": {}, "type": "object", "z": None},
            "outputs": {"n": -3},
            "description": "d",
        },
        {"name": "bare", "version": ""},
    ],
    "version": "1.0",
    "health": {
        "status": "degraded",
        "lastCheck": "2026-11-24T05:00:00.001Z",
        "responseTime": 12.5,
        "details": {"queue": 5},
        "error": "slow",
        "statusChangedAt": "2026-11-24T04:59:59.999Z",
    },
    "metadata": {
        "description": "D",
        "tags": ["t"],
        "author": "A",
        "documentation": "http://docs",
        "environment": "E",
        "labels": {"a": "ü", "z": "1"},
    },
    "registeredAt": "2026-11-24T05:00:00.000Z",
    "updatedAt": "2026-11-24T05:00:01.123Z",
    "group": "g",
    "healthCheck": {
        "type": "http",
        "path": "/h",
        "method": "HEAD",
        "headers": {"A": "1", "B": "2"},
        "expectedStatuses": [200, 204],
        "intervalMs": 10_000,
        "timeoutMs": 1.5,
        "failureThreshold": 4,
        "successThreshold": 5,
        "degradedAfterMs": 250,
    },
    "ttlSeconds": 30.5,
    "revision": 7,
}


def violations_of(document: object, at: str = "") -> tuple[Violation, ...]:
    with pytest.raises(InvalidRequest) as caught:
        service_from_document(document, at)
    return caught.value.violations


def dumped(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def test_example_of_the_reference_implementation_is_this_json() -> None:
    service = service_from_document(EXAMPLE)
    assert service_violations(service) == []
    service.registered_at.FromJsonString("2026-11-24T05:00:00Z")
    service.updated_at.FromJsonString("2026-11-24T05:00:01.5Z")
    service.revision = 42
    prefix = encode_document_prefix(service)
    assert prefix.decode() + "42}" == (
        '{"name":"ai-text-processor","endpoint":"https://ai-service.company.com:8080","capabilities":[{"name":'
        '"text-analysis","version":"2.0.0","description":"Advanced text analysis with sentiment detection"}],'
        '"version":"2.1.0","health":{"status":"unknown","lastCheck":"2026-11-24T05:00:00.000Z"},"metadata":{"tags":'
        '["ai","nlp"],"environment":"production","labels":{}},"registeredAt":"2026-11-24T05:00:00.000Z","updatedAt":'
        '"2026-11-24T05:00:01.500Z","group":"ai-text-processor","revision":42}'
    )
    assert dumped(service_document(service)) == prefix.decode() + "42}"


def test_every_field_is_written() -> None:
    assert dumped(service_document(full())) == dumped(FULL)


def test_every_field_is_read() -> None:
    expected = full()
    for field in ("registered_at", "updated_at", "revision"):
        expected.ClearField(field)
    expected.health.ClearField("status_changed_at")
    assert service_from_document(FULL) == expected


def test_document_prefix_is_utf_8_and_lacks_only_the_revision() -> None:
    encoded = encode_document_prefix(full())
    assert encoded.endswith(b',"ttlSeconds":30.5,"revision":')
    assert "ü".encode() in encoded
    assert json.loads(encoded + b"9}") == {**FULL, "revision": 9}


def test_document_is_independent_of_the_order_of_maps() -> None:
    one, other = build_service(name="a"), build_service(name="a")
    keys = [f"k{index}" for index in range(50)]
    for key in keys:
        one.metadata.labels[key] = one.health.details.fields[key].string_value = key
    for key in reversed(keys):
        other.metadata.labels[key] = other.health.details.fields[key].string_value = key
    assert encode_document_prefix(one) == encode_document_prefix(other)


def test_changing_a_document_does_not_change_the_cache() -> None:
    first = service_document(full())
    first["capabilities"][0]["inputs"]["a"].append("changed")
    assert service_document(full()) == FULL


def test_large_schema_is_written_like_a_small_one() -> None:
    schema = {f"k{index}": {"description": "x" * 100, "enum": [index, None, True]} for index in range(100)}
    service = service_from_document({"capabilities": [{"name": "c", "inputs": schema}]})
    assert service_document(service)["capabilities"][0]["inputs"] == schema


def test_empty_service_has_a_document() -> None:
    assert service_document(Service()) == {
        "name": "",
        "endpoint": "",
        "capabilities": [],
        "version": "",
        "health": {"status": "unknown"},
        "group": "",
        "revision": 0,
    }


@pytest.mark.parametrize(("status", "word"), STATUS_WORDS.items(), ids=STATUS_BY_WORD)
def test_each_status_has_a_word(status: HealthStatus.ValueType, word: str) -> None:
    assert health_document(Health(status=status)) == {"status": word}
    assert service_from_document({"health": {"status": word}}).health.status == status
    assert HealthStatus.Name(status) == f"HEALTH_STATUS_{word.upper()}"


def test_table_of_words_contains_every_status() -> None:
    assert set(HealthStatus.values()) == {*STATUS_WORDS, HealthStatus.HEALTH_STATUS_UNSPECIFIED}


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (5.0, "5"),
        (0.0, "0"),
        (-0.0, "-0.0"),
        (2.5, "2.5"),
        (-7.0, "-7"),
        (2.0**53, "9007199254740992"),
        (2.0**54, "1.8014398509481984e+16"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_are_written_without_loss(number: float, text: str) -> None:
    details = Struct(fields={"n": Value(number_value=number)})
    assert json.dumps(health_document(Health(details=details))["details"]) == f'{{"n": {text}}}'
    read = service_from_document(json.loads(f'{{"health":{{"details":{{"n":{text}}}}}}}'))
    assert read.health.details == details


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (Timestamp(), "1970-01-01T00:00:00.000Z"),
        (Timestamp(nanos=999_999_999), "1970-01-01T00:00:00.999Z"),
        (Timestamp(seconds=-1), "1969-12-31T23:59:59.000Z"),
        (Timestamp(seconds=-62_135_596_800), "0001-01-01T00:00:00.000Z"),
        (Timestamp(seconds=253_402_300_799, nanos=999_000_000), "9999-12-31T23:59:59.999Z"),
    ],
    ids=["epoch", "truncated to milliseconds", "before the epoch", "first", "last"],
)
def test_times_are_written_in_utc_with_milliseconds(timestamp: Timestamp, text: str) -> None:
    assert health_document(Health(last_check=timestamp))["lastCheck"] == text


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


@pytest.mark.parametrize(
    ("kind", "field"),
    [("tcp", "tcp"), ("heartbeat", "heartbeat"), ("none", "none"), ("http", "http"), ("grpc", "grpc")],
)
def test_each_kind_of_probe_is_read_and_written(kind: str, field: str) -> None:
    service = service_from_document({"healthCheck": {"type": kind}})
    assert service.health_check.WhichOneof("probe") == field
    assert service_document(service)["healthCheck"] == {"type": kind}


def test_health_check_without_a_type_is_read_and_written() -> None:
    service = service_from_document({"healthCheck": {"intervalMs": 1000}})
    assert service.health_check.WhichOneof("probe") is None
    assert service_document(service)["healthCheck"] == {"intervalMs": 1000}
    assert service_from_document({"healthCheck": {"type": "grpc", "service": "s"}}).health_check.grpc.service == "s"


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


@pytest.mark.parametrize("value", ["2026", 5, [], {"a": 1}, "no time"])
def test_output_only_fields_are_ignored(value: object) -> None:
    document = {"registeredAt": value, "updatedAt": value, "revision": value, "health": {"statusChangedAt": value}}
    assert service_from_document(document) == build_service(health={})


BAD: list[tuple[object, str, str]] = [
    (None, "service", "is required: a JSON object"),
    ([], "service", "must be an object, not an array"),
    ("text", "service", "must be an object, not text"),
    ({"nme": "a"}, "nme", "is not a field; the fields are name, endpoint, capabilities"),
    ({"health_check": {}}, "health_check", "is not a field"),
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
     "is not a field; the fields are name, version, inputs"),
    ({"capabilities": [{"inputs": []}]}, "capabilities[0].inputs", "must be an object, not an array"),
    ({"capabilities": [{"inputs": {"a": math.nan}}]}, "capabilities[0].inputs.a", "must be a finite number"),
    ({"capabilities": [{"inputs": {"a": [1, math.inf]}}]}, "capabilities[0].inputs.a[1]", "must be a finite number"),
    ({"capabilities": [{"inputs": {"a b": 10**400}}]}, 'capabilities[0].inputs["a b"]', "must be a finite number"),
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


def test_all_violations_are_reported_under_the_given_path() -> None:
    document = {
        "name": 5,
        "extra": 1,
        "capabilities": [{"version": 2}, 7],
        "health": {"status": "fine", "responseTime": "fast"},
        "metadata": {"tags": [1, "ok", 2]},
        "healthCheck": {"type": "udp", "path": "/"},
        "ttlSeconds": True,
    }
    assert [violation.field for violation in violations_of(document, "services[2]")] == [
        "services[2].extra",
        "services[2].name",
        "services[2].capabilities[0].version",
        "services[2].capabilities[1]",
        "services[2].health.status",
        "services[2].health.responseTime",
        "services[2].metadata.tags[0]",
        "services[2].metadata.tags[2]",
        "services[2].healthCheck.type",
        "services[2].ttlSeconds",
    ]
    assert [violation.field for violation in violations_of(3, "services[2]")] == ["services[2]"]


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


texts = st.text(max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)
structs = st.dictionaries(texts, json_values, max_size=4)
# Values that a document holds exactly: times in milliseconds, and durations that a double holds to the nanosecond.
timestamps = st.builds(
    lambda ms: {"seconds": ms // 1_000, "nanos": ms % 1_000 * 1_000_000},
    st.integers(-62_135_596_800_000, 253_402_300_799_999),
)
durations = st.builds(lambda ns: {"seconds": ns // 10**9, "nanos": ns % 10**9}, st.integers(0, 86_400 * 10**9))
int32s = st.integers(-(2**31), 2**31 - 1)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


probes = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {
            "http": optional(
                path=texts,
                method=texts,
                headers=st.dictionaries(texts, texts, max_size=3),
                expected_statuses=st.lists(int32s, max_size=3),
            )
        }
    ),
    st.fixed_dictionaries({"grpc": optional(service=texts)}),
    st.sampled_from([{"tcp": {}}, {"heartbeat": {}}, {"none": {}}]),
)
checks = st.builds(
    lambda probe, rest: {**probe, **rest},
    probes,
    optional(
        interval=durations,
        timeout=durations,
        degraded_after=durations,
        failure_threshold=int32s,
        success_threshold=int32s,
    ),
)
services = st.fixed_dictionaries(
    {
        "group": st.text(min_size=1, max_size=8),
        "health": st.fixed_dictionaries(
            {"status": st.sampled_from(sorted(STATUS_WORDS))},
            optional={
                "last_check": timestamps,
                "response_time": durations,
                "details": structs,
                "error": texts,
                "status_changed_at": timestamps,
            },
        ),
    },
    optional={
        "name": texts,
        "endpoint": texts,
        "version": texts,
        "capabilities": st.lists(
            optional(name=texts, version=texts, inputs=structs, outputs=structs, description=texts), max_size=3
        ),
        "metadata": optional(
            description=texts,
            tags=st.lists(texts, max_size=3),
            author=texts,
            documentation=texts,
            environment=texts,
            labels=st.dictionaries(texts, texts, max_size=3),
        ),
        "registered_at": timestamps,
        "updated_at": timestamps,
        "revision": st.integers(0, 2**63 - 1),
        "health_check": checks,
        "ttl": durations,
    },
)


@given(services)
def test_service_round_trips_through_json(fields: dict[str, Any]) -> None:
    service = build_service(**fields)
    document = service_document(service)
    assert json.loads(encode_document_prefix(service) + b"%d}" % service.revision) == document
    read = service_from_document(json.loads(json.dumps(document, allow_nan=False)))
    for field in ("registered_at", "updated_at", "revision"):
        service.ClearField(field)
    service.health.ClearField("status_changed_at")
    assert read == service


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
    try:
        service = service_from_document(document)
    except InvalidRequest as refused:
        for violation in refused.violations:
            violation.field.encode()
            violation.description.encode()
        return
    assert isinstance(service_violations(service), list)
    json.dumps(service_document(service), allow_nan=False)
