"""``rest_names``: violations name the fields of REST."""

import pytest

from ossa_common.violations import Violation
from registry_server.errors import InvalidRequest
from registry_server.gateway.names import rest_names

NAMES = {
    "service": "service",
    "service.name": "name",
    "service.ttl": "ttlSeconds",
    "service.capabilities[3].inputs": "capabilities[3].inputs",
    "service.health.response_time": "health.responseTime",
    "service.metadata.tags[0]": "metadata.tags[0]",
    'service.metadata.labels["a_b.ttl"]': 'metadata.labels["a_b.ttl"]',
    "service.health_check.interval": "healthCheck.intervalMs",
    "service.health_check.timeout": "healthCheck.timeoutMs",
    "service.health_check.degraded_after": "healthCheck.degradedAfterMs",
    "service.health_check.failure_threshold": "healthCheck.failureThreshold",
    "service.health_check.http.path": "healthCheck.path",
    "service.health_check.http.expected_statuses[1]": "healthCheck.expectedStatuses[1]",
    'service.health_check.http.headers["X_y"]': 'healthCheck.headers["X_y"]',
    "service.health_check.grpc.service": "healthCheck.service",
    "filter.name_pattern": "name",
    "filter.capability_version": "capabilityVersion",
    "filter.tags[2]": "tags",
    "filter.health[0]": "health",
    "filter.tag_match": "tagMatch",
    "filter.labels": "label",
    'filter.labels["a\\"b_c"]': 'label.a"b_c',
    "page_size": "pageSize",
    "page_token": "pageToken",
    "cursor": "Last-Event-ID",
    "expected_revision": "If-Match",
    "name": "name",
}


@pytest.mark.parametrize("path", NAMES)
def test_grpc_field_path_is_renamed_for_rest(path: str) -> None:
    with pytest.raises(InvalidRequest) as caught, rest_names():
        raise InvalidRequest([Violation(path, "is bad")])
    assert caught.value.violations == (Violation(NAMES[path], "is bad"),)
