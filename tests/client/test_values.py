"""Helpers that build messages."""

from typing import Any, cast

import pytest

from registry_client import (
    Capability,
    Consistency,
    EventType,
    HealthCheck,
    HealthStatus,
    Policy,
    RegistrationState,
    ServiceFilter,
    TagMatch,
    enum_name,
)
from registry_client.values import FilterFields, enum_value, make_filter, make_service

HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED
UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN
MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
STRONG = Consistency.CONSISTENCY_STRONG


def test_make_service_sets_all_fields() -> None:
    service = make_service(
        "agent",
        "http://agent.test",
        version="1.0.0",
        capabilities=["x", "y@1.2.0", Capability(name="z", description="more")],
        group="team",
        health_check=HealthCheck(tcp=HealthCheck.TcpProbe()),
        ttl=7.5,
        tags=["ai"],
        labels={"zone": "eu"},
        environment="production",
        description="An agent",
    )
    assert [(each.name, each.version) for each in service.capabilities] == [("x", ""), ("y", "1.2.0"), ("z", "")]
    assert (service.group, service.ttl.ToMilliseconds()) == ("team", 7_500)
    assert service.health_check.WhichOneof("probe") == "tcp"
    assert (list(service.metadata.tags), dict(service.metadata.labels)) == (["ai"], {"zone": "eu"})
    assert (service.metadata.environment, service.metadata.description) == ("production", "An agent")


def test_make_service_leaves_other_fields_unset() -> None:
    service = make_service("agent", "http://agent.test", version="1.0.0")
    assert {field.name for field, _ in service.ListFields()} == {"name", "endpoint", "version"}
    assert make_service("a", "http://a.test", version="1", ttl=0).HasField("ttl")


@pytest.mark.parametrize("kind", ["http", "grpc", "tcp", "heartbeat", "none"])
def test_health_check_accepts_a_probe_type(kind: str) -> None:
    service = make_service("a", "http://a.test", version="1", health_check=kind)
    assert service.health_check.WhichOneof("probe") == kind


def test_unknown_probe_types_fields_and_statuses_raise() -> None:
    with pytest.raises(ValueError, match="health_check: 'psychic'"):
        make_service("a", "http://a.test", version="1", health_check="psychic")
    with pytest.raises(TypeError, match="colour"):
        make_service("a", "http://a.test", version="1", colour="red")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"status: 'jolly'.* use one of healthy, unhealthy"):
        enum_value(HealthStatus, "jolly", "status")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"version": 1}, "version must be a str, such as '1', not 1"),
        ({"version": None}, "version must be a str, not None"),
        ({"tags": "nlp"}, r"tags must be a list of str, such as \['nlp'\], not 'nlp'"),
        ({"tags": ["a", 1]}, r"tags\[1\] must be a str, such as '1'"),
        ({"tags": None}, "tags must be a list"),
        ({"labels": ["a"]}, "labels must be a dict"),
        ({"labels": {"weight": 3}}, r"labels\['weight'\] must be a str, such as '3'"),
        ({"capabilities": "summarize"}, "capabilities must be a list"),
        ({"capabilities": {"name": "summarize"}}, "capabilities must be a list"),
        ({"capabilities": [1]}, r"capabilities\[0\] must be a str, a dict or a Capability"),
        ({"ttl": "30"}, "ttl must be a number of seconds"),
        ({"group": 7}, "group must be a str"),
        ({"tag": ["a"]}, "has no field tag"),
    ],
)
def test_value_of_the_wrong_type_is_refused_by_name(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(TypeError, match=problem):
        make_service("a", "http://a.test", **{"version": "1", **fields})
    if fields.keys() <= FilterFields.__annotations__.keys():
        with pytest.raises(TypeError, match=problem):
            make_filter(None, cast("FilterFields", fields))


def test_endpoint_must_be_text_and_times_finite() -> None:
    with pytest.raises(TypeError, match="endpoint must be a str, not None"):
        make_service("a", cast("str", None), version="1")
    with pytest.raises(ValueError, match="ttl must be a finite number"):
        make_service("a", "http://a.test", version="1", ttl=float("nan"))
    with pytest.raises(TypeError, match="a filter has no field tagz"):
        make_filter(None, cast("FilterFields", {"tagz": ["a"]}))


def test_capabilities_may_be_dicts() -> None:
    schema = {"type": "object", "required": ("text",)}
    service = make_service(
        "a", "http://a.test", version="1", capabilities=["x", {"name": "y", "version": "1.2.0", "inputs": schema}]
    )
    assert [(each.name, each.version) for each in service.capabilities] == [("x", ""), ("y", "1.2.0")]
    assert service.capabilities[1].inputs.fields["required"].list_value.values[0].string_value == "text"
    with pytest.raises(ValueError, match=r"capabilities\[1\]\.nam: .*did you mean name"):
        make_service("a", "http://a.test", version="1", capabilities=["x", {"nam": "y"}])


def test_health_sets_the_first_status() -> None:
    assert make_service("a", "http://a.test", version="1", health="degraded").health.status == DEGRADED


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"health": "healthy"}, ServiceFilter(health=[HEALTHY])),
        ({"health": UNHEALTHY}, ServiceFilter(health=[UNHEALTHY])),
        ({"health": ["HEALTH_STATUS_UNKNOWN", DEGRADED]}, ServiceFilter(health=[UNKNOWN, DEGRADED])),
        ({"tags": ["a", "b"], "tag_match": "all"}, ServiceFilter(tags=["a", "b"], tag_match=TagMatch.TAG_MATCH_ALL)),
        ({"tag_match": 1}, ServiceFilter(tag_match=TagMatch.TAG_MATCH_ANY)),
        ({"labels": {"zone": "eu"}, "group": "g"}, ServiceFilter(labels={"zone": "eu"}, group="g")),
    ],
)
def test_make_filter_accepts_keyword_arguments(fields: FilterFields, expected: ServiceFilter) -> None:
    assert make_filter(None, fields) == expected


def test_every_field_of_a_filter_is_a_keyword_argument() -> None:
    assert list(FilterFields.__annotations__) == [field.name for field in ServiceFilter.DESCRIPTOR.fields]


def test_keyword_arguments_override_a_copy_of_the_filter() -> None:
    base = ServiceFilter(capability="x", health=[HEALTHY])
    merged = make_filter(base, {"health": "degraded", "environment": "test"})
    assert merged == ServiceFilter(capability="x", health=[DEGRADED], environment="test")
    assert base == ServiceFilter(capability="x", health=[HEALTHY])


def test_enums_accept_names_and_values() -> None:
    assert enum_value(HealthStatus, "maintenance", "a") == enum_value(HealthStatus, MAINTENANCE, "a") == MAINTENANCE
    assert enum_value(Consistency, "strong", "a") == enum_value(Consistency, "CONSISTENCY_STRONG", "a") == STRONG
    assert (enum_name(HealthStatus, MAINTENANCE), enum_name(HealthStatus, 99)) == ("maintenance", "99")
    assert f"{RegistrationState.AWAY} {Policy.ROUND_ROBIN}" == "away round_robin"
    snapshot = EventType.EVENT_TYPE_SERVICE_SNAPSHOT
    assert enum_value(EventType, "service_snapshot", "a") == enum_value(EventType, snapshot, "a") == snapshot
