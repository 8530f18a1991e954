import json
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from ossa_common.json_shape import STATUS_BY_WORD, STATUS_WORDS
from ossa_common.json_writer import message_document
from registry_server.model.document import encode_document_prefix, health_document, service_document
from registry_server.model.validation import service_violations
from tests.support.documents import FULL, build_service, full, service_from_document

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


def test_document_prefix_is_utf_8_and_lacks_only_the_revision() -> None:
    encoded = encode_document_prefix(full())
    assert encoded.endswith(b'"by":"op"},"revision":')
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
    written = message_document(service)
    if service.HasField("registered_at"):
        written.setdefault("health", {"status": "unknown"}).setdefault("lastCheck", document["registeredAt"])
    assert written == document
    assert message_document(service.health) == health_document(service.health)
    read = service_from_document(json.loads(json.dumps(document, allow_nan=False)))
    if not service.health.HasField("last_check"):
        read.health.ClearField("last_check")
    for field in ("registered_at", "updated_at", "revision"):
        service.ClearField(field)
    service.health.ClearField("status_changed_at")
    assert read == service
