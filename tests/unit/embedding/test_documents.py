"""Arguments of an embedded registry as dictionaries."""

from datetime import UTC, datetime
from typing import Any

import pytest

from ossa.registry.v1.service_pb2 import HealthStatus, ServiceFilter, TagMatch
from registry_server.embedding.documents import read_filter, read_registration, read_update
from registry_server.errors import InvalidRequest

SERVICE: dict[str, Any] = {
    "name": "ai-text-processor",
    "endpoint": "https://ai-service.company.com:8080",
    "version": "2.1.0",
    "capabilities": [{"name": "text-analysis", "version": "2.0.0"}],
}


def fields_of(error: pytest.ExceptionInfo[InvalidRequest]) -> list[str]:
    return [violation.field for violation in error.value.violations]


def test_registration_is_read_with_times_of_python() -> None:
    now = datetime(2026, 11, 24, 5, tzinfo=UTC)
    service = read_registration({**SERVICE, "health": {"status": "healthy", "lastCheck": now}})
    assert (service.name, service.capabilities[0].version) == ("ai-text-processor", "2.0.0")
    assert service.health.status == HealthStatus.HEALTH_STATUS_HEALTHY
    assert service.health.last_check.ToDatetime(UTC) == now


def test_all_faults_of_a_registration_are_reported() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_registration({"name": "a b", "version": 1, "colour": "red"})
    assert set(fields_of(caught)) == {"capabilities", "name", "endpoint", "version", "colour"}
    with pytest.raises(TypeError, match="set is not a JSON value"):
        read_registration({**SERVICE, "metadata": {"tags": {"a"}}})


def test_update_changes_the_members_of_the_dictionary() -> None:
    service, mask = read_update({"version": "3", "metadata": None}, "a")
    assert (service.name, service.version, sorted(mask.paths)) == ("a", "3", ["metadata", "version"])


def test_filter_has_the_members_of_ossa_and_more() -> None:
    assert read_filter({}) == ServiceFilter()
    assert read_filter(
        {
            "namePattern": "^ai-",
            "capability": "text-analysis",
            "capabilityVersion": "^2",
            "healthStatus": ["healthy", "DEGRADED"],
            "tags": ["ai", "nlp"],
            "tagMatch": "all",
            "version": None,
            "environment": "production",
            "group": "@acme/agents",
            "labels": {"region": "eu"},
        }
    ) == ServiceFilter(
        name_pattern="^ai-",
        capability="text-analysis",
        capability_version="^2",
        health=[HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_DEGRADED],
        tags=["ai", "nlp"],
        tag_match=TagMatch.TAG_MATCH_ALL,
        environment="production",
        group="@acme/agents",
        labels={"region": "eu"},
    )
    assert read_filter({"healthStatus": "healthy", "tags": []}).health == [HealthStatus.HEALTH_STATUS_HEALTHY]


def test_bad_filter_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_filter({"colour": "red", "healthStatus": "sick", "namePattern": "("})
    assert set(fields_of(caught)) == {"colour", "health", "name"}
