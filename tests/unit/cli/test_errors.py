"""Violations name the fields that users of the command line see."""

import pytest

from ossa_common.violations import Violation
from registry_cli.errors import field_name
from registry_server.gateway.names import renamed


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
    assert [field_name(path)] == [field for field, _ in renamed([Violation(path, "")])]


@pytest.mark.parametrize(
    ("path", "flag"),
    [
        ("filter.name_pattern", "--name"),
        ("filter.capability_version", "--capability-version"),
        ("filter.tags[1]", "--tag"),
        ("filter.tag_match", "--all-tags"),
        ('filter.labels["a"]', "--label"),
        ("filter.environment", "--environment"),
    ],
)
def test_filter_paths_become_flags(path: str, flag: str) -> None:
    assert field_name(path) == flag
