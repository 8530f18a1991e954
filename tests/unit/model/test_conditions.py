from ossa.registry.v1.service_pb2 import HealthStatus, ServiceFilter, TagMatch
from registry_server.model.conditions import joined, split_filter

FILTER = ServiceFilter(
    name_pattern="a",
    capability="c",
    capability_version="^1",
    health=[HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_DEGRADED],
    tags=["x", "y"],
    tag_match=TagMatch.TAG_MATCH_ALL,
    version="1.0.0",
    environment="e",
    group="g",
    labels={"k": "v", "l": ""},
    available=True,
)


def test_conditions_together_are_the_filter() -> None:
    assert joined(split_filter(FILTER)) == FILTER
    assert joined(split_filter(ServiceFilter(tags=["x", "y"]))) == ServiceFilter(tags=["x", "y"])
    assert split_filter(ServiceFilter()) == []


def test_every_field_of_the_filter_is_a_condition() -> None:
    fields = {condition.field.partition("[")[0] for condition in split_filter(FILTER)}
    assert fields == {field.name for field in ServiceFilter.DESCRIPTOR.fields} - {"tag_match"}
