"""The filter parameters of query strings."""

import pytest

from ossa.registry.v1.service_pb2 import ServiceFilter
from registry_server.gateway.parameters import FILTERS, Query


def test_every_filter_field_is_a_parameter() -> None:
    assert FILTERS[:3] == ("name", "capability", "capabilityVersion")
    assert len(FILTERS) == len(ServiceFilter.DESCRIPTOR.fields) - 1  # labels have a prefix instead


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-24T12:00:00", "x"])
def test_what_is_no_time_is_a_violation(text: str) -> None:
    query = Query({"since": text}, ("since",))
    assert query.time("since") is None
    assert [violation.field for violation in query.violations] == ["since"]
