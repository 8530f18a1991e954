"""The command line reads and writes the same JSON as the REST API."""

import json
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.registry_service_pb2 import CapabilitySummary, RegistryStats
from ossa.registry.v1.service_pb2 import Service
from registry_cli.documents import document, read_service
from registry_cli.field_names import document_name
from registry_server.errors import InvalidRequest, Violation
from registry_server.gateway.names import renamed
from registry_server.gateway.routes import capability_document, stats_document
from registry_server.model.document import health_document, service_document
from registry_server.model.document_reader import service_from_document

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NAME = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
NUMBER = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | TEXT | NUMBER,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
DURATION = st.builds(lambda nanos: {"seconds": nanos // 10**9, "nanos": nanos % 10**9}, st.integers(0, 10**14))
TIME = st.builds(
    lambda seconds, nanos: {"seconds": seconds, "nanos": nanos}, st.integers(0, 4 * 10**9), st.integers(0, 10**9 - 1)
)
PROBE = st.sampled_from(
    [
        {},
        {"http": {}},
        {"http": {"path": "/x", "method": "HEAD", "headers": {"b": "1", "A": "2"}, "expected_statuses": [200, 404]}},
        {"grpc": {}},
        {"grpc": {"service": "s"}},
        {"tcp": {}},
        {"heartbeat": {}},
        {"none": {}},
    ]
)


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


CHECK = st.builds(
    lambda probe, rest: {**probe, **rest},
    PROBE,
    optional(
        interval=DURATION,
        timeout=DURATION,
        failure_threshold=st.integers(0, 100),
        success_threshold=st.integers(0, 100),
        degraded_after=DURATION,
    ),
)
HEALTH = st.fixed_dictionaries(
    {"status": st.integers(0, 5)},
    optional={
        "last_check": TIME,
        "response_time": DURATION,
        "details": PLAIN,
        "error": TEXT,
        "status_changed_at": TIME,
    },
)
CAPABILITY = st.fixed_dictionaries(
    {"name": NAME}, optional={"version": TEXT, "inputs": PLAIN, "outputs": PLAIN, "description": TEXT}
)


def _service(fields: dict[str, Any]) -> Service:
    return Service(**fields)


SERVICE = st.fixed_dictionaries(
    # The registry sets these in every response.
    {"name": NAME, "endpoint": TEXT, "version": TEXT, "group": NAME, "health": HEALTH},
    optional={
        "capabilities": st.lists(CAPABILITY, max_size=3),
        "metadata": optional(
            description=TEXT,
            tags=st.lists(TEXT, max_size=3),
            author=TEXT,
            documentation=TEXT,
            environment=TEXT,
            labels=st.dictionaries(TEXT, TEXT, max_size=3),
        ),
        "registered_at": TIME,
        "updated_at": TIME,
        "revision": st.integers(0, 2**62),
        "health_check": CHECK,
        "ttl": DURATION,
    },
).map(_service)


@given(SERVICE)
def test_service_is_formatted_as_in_the_rest_api(service: Service) -> None:
    assert document(service) == service_document(service)
    assert document(service.health) == health_document(service.health)


@given(SERVICE)
def test_document_is_read_as_by_the_rest_api(service: Service) -> None:
    parsed = json.loads(json.dumps(document(service)))
    assert read_service(parsed) == (service_from_document(parsed), [])


@pytest.mark.parametrize(
    "invalid",
    [
        7,
        "text",
        [],
        {"name": 1},
        {"name": "\ud800"},
        {"colour": "red"},
        {"capabilities": {}},
        {"capabilities": [1]},
        {"capabilities": [{"inputs": []}]},
        {"capabilities": [{"inputs": {"a": float("inf")}}]},
        {"capabilities": [{"inputs": {"a": 10**400}}]},
        {"health": {"status": "ill"}},
        {"health": {"lastCheck": "yesterday"}},
        {"health": {"responseTime": "1"}},
        {"health": {"responseTime": True}},
        {"metadata": {"tags": [1]}},
        {"metadata": {"labels": {"a": 1}}},
        {"healthCheck": {"type": "ping"}},
        {"healthCheck": {"path": "/x"}},
        {"healthCheck": {"type": "tcp", "path": "/x"}},
        {"healthCheck": {"type": "http", "expectedStatuses": [1.5]}},
        {"healthCheck": {"type": "http", "headers": []}},
        {"healthCheck": {"failureThreshold": 2**40}},
        {"healthCheck": {"intervalMs": 10**30}},
        {"ttlSeconds": 10**30},
        {"ttlSeconds": 1e-12},
    ],
)
def test_invalid_documents_have_the_same_error_paths_as_in_the_rest_api(invalid: object) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        service_from_document(invalid)
    paths = [field for field, _ in read_service(invalid)[1]]
    assert paths == [field for field, _ in rejected.value.violations]


@pytest.mark.parametrize("partial", [{}, {"ttlSeconds": None}, {"healthCheck": {}}, {"healthCheck": {"type": None}}])
def test_absent_fields_are_valid(partial: dict[str, Any]) -> None:
    assert read_service(partial) == (service_from_document(partial), [])


def test_capabilities_are_formatted_as_in_the_rest_api() -> None:
    for message in (
        CapabilitySummary(name="a", versions=["1"], service_names=["b"], service_count=1),
        CapabilitySummary(name="a", description="d"),
    ):
        assert document(message) == capability_document(message)


def test_statistics_are_formatted_as_in_the_rest_api() -> None:
    for message in (RegistryStats(), RegistryStats(total_services=3, average_capabilities_per_service=1 / 3)):
        assert document(message) == stats_document(message)


def test_undefined_status_is_formatted_as_unknown() -> None:
    service = Service()
    service.health.status = 99  # type: ignore[assignment] # a newer registry may send it
    assert document(service)["health"] == {"status": "unknown"}


@pytest.mark.parametrize(
    "path",
    [
        "service.name",
        "service.ttl",
        "service.capabilities[3].name",
        "service.health_check.http.expected_statuses[0]",
        "service.health_check.http",
        "service.health_check.grpc.service",
        "service.health_check.degraded_after",
        'service.metadata.labels["a_b"]',
        'service.capabilities[0].inputs["snake_case"]',
        "names[2]",
    ],
)
def test_field_paths_are_those_of_the_rest_api(path: str) -> None:
    assert [document_name(path)] == [field for field, _ in renamed([Violation(path, "")])]


@pytest.mark.parametrize(
    ("path", "flag"),
    [
        ("filter.name_pattern", "--name"),
        ("filter.capability_version", "--capability-version"),
        ("filter.tags[1]", "--tag"),
        ('filter.labels["a"]', "--label"),
        ("filter.environment", "--environment"),
    ],
)
def test_filter_paths_become_flags(path: str, flag: str) -> None:
    assert document_name(path) == flag


def test_every_field_of_the_contract_can_be_formatted() -> None:
    """A field of a type that is missing in the tables would raise an exception."""

    def filled(message: Message, depth: int = 0) -> Message:
        for field in message.DESCRIPTOR.fields:
            if field.message_type is not None and not field.is_repeated and depth < 4:
                target = getattr(message, field.name)
                target.SetInParent()
                if not isinstance(target, Timestamp) and target.DESCRIPTOR.file.package.startswith("ossa."):
                    filled(target, depth + 1)
        return message

    assert document(filled(Service()))["healthCheck"]["type"] == "none"
