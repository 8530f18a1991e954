"""The filter parameters of query strings."""

from ossa.registry.v1.service_pb2 import ServiceFilter
from registry_server.gateway.parameters import FILTERS


def test_every_filter_field_is_a_parameter() -> None:
    assert FILTERS[:3] == ("name", "capability", "capabilityVersion")
    assert len(FILTERS) == len(ServiceFilter.DESCRIPTOR.fields) - 1  # labels have a prefix instead
