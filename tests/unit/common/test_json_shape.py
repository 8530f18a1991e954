"""The JSON shape follows the descriptors, so that a new field needs no edit."""

import pytest
from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1.registry_service_pb2 import GetRegistryHealthResponse
from ossa.registry.v1.service_pb2 import Health, HealthCheck, Metadata, Service
from ossa_common.json_shape import DURATIONS, enum_word, json_keys, json_path


def test_keys_of_a_health_check_include_those_of_all_probes() -> None:
    assert json_keys(HealthCheck.DESCRIPTOR)[:7] == (
        "type",
        "path",
        "method",
        "headers",
        "expectedStatuses",
        "service",
        "intervalMs",
    )
    assert json_keys(Metadata.DESCRIPTOR) == tuple(field.name for field in Metadata.DESCRIPTOR.fields)


def test_table_contains_every_duration_field() -> None:
    durations = {
        field.name
        for message in (Service, Health, HealthCheck, GetRegistryHealthResponse)
        for field in message.DESCRIPTOR.fields
        if field.message_type is not None and field.message_type.full_name == Duration.DESCRIPTOR.full_name
    }
    assert durations == set(DURATIONS)


@pytest.mark.parametrize(("number", "word"), [(1, "healthy"), (0, "unknown"), (99, "unknown")])
def test_enum_value_has_a_word(number: int, word: str) -> None:
    assert enum_word(Health.DESCRIPTOR.fields_by_name["status"].enum_type, number) == word


def test_path_within_a_service_is_translated() -> None:
    assert json_path("health_check.http.expected_statuses[1]") == "healthCheck.expectedStatuses[1]"
    assert json_path("health_check.http") == "healthCheck.http"
    assert json_path('metadata.labels["a_b.ttl"]') == 'metadata.labels["a_b.ttl"]'
