from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.model.normal import apply_registration, apply_update, replace_health, set_change_time, update_type
from tests.support.samples import small_service

HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN
MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
THEN, NOW = Timestamp(seconds=1_000), Timestamp(seconds=2_000)


def stored(**fields: Any) -> Service:
    """Return a service that was registered at ``THEN``."""
    service = set_change_time(apply_registration(small_service("a", **fields), None, THEN), THEN)
    service.revision = 7
    return service


def sent(**fields: Any) -> Service:
    return small_service("a", **fields)


def health(status: HealthStatus.ValueType, **fields: Any) -> dict[str, Any]:
    return {"status": status, **fields}


# Registration.


def test_first_registration_sets_defaults() -> None:
    service = set_change_time(apply_registration(sent(), None, NOW), NOW)

    assert service.group == "a"
    assert service.health == Health(status=UNKNOWN, status_changed_at=NOW)
    assert service.registered_at == service.updated_at == NOW
    assert service.revision == 0


def test_registration_may_set_the_health() -> None:
    service = apply_registration(sent(health=health(HEALTHY, last_check=THEN, error="none")), None, NOW)

    assert service.health == Health(status=HEALTHY, last_check=THEN, error="none", status_changed_at=NOW)


def test_output_only_fields_of_a_request_are_ignored() -> None:
    forged = sent(registered_at=THEN, updated_at=THEN, revision=99, health=health(HEALTHY, status_changed_at=THEN))

    first = apply_registration(forged, None, NOW)
    again = apply_registration(forged, stored(), NOW)

    assert not first.HasField("registered_at")
    assert not first.HasField("updated_at")
    assert first.revision == 0
    assert first.health.status_changed_at == NOW
    assert (again.registered_at, again.updated_at, again.revision) == (THEN, THEN, 7)
    assert again.health.status_changed_at == NOW


def test_request_message_is_not_modified() -> None:
    original = sent(health=health(HEALTHY), revision=5)
    copy = Service()
    copy.CopyFrom(original)

    apply_registration(original, stored(), NOW)
    apply_update(original, FieldMask(), stored(), NOW)

    assert original == copy


STATUSES = [0, *range(1, 6)]
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "endpoint": st.sampled_from(["http://one.test", "http://two.test"]),
        "version": st.sampled_from(["1", "2"]),
        "group": st.sampled_from(["a", "g"]),
        "health": st.fixed_dictionaries(
            {"status": st.sampled_from(STATUSES)},
            optional={"error": st.sampled_from(["", "why"]), "last_check": st.sampled_from([THEN, NOW])},
        ),
        "metadata": st.fixed_dictionaries({"tags": st.lists(st.sampled_from("xy"), unique=True)}),
        "instance_id": st.sampled_from(["one", "two"]),
        "draining": st.booleans(),
        "ttl": st.fixed_dictionaries({"seconds": st.sampled_from([0, 60])}),
        "capabilities": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["read", "write"])}), max_size=1),
    },
)


@given(FIELDS)
def test_equal_registration_changes_nothing(fields: dict[str, Any]) -> None:
    current = stored(**fields)

    assert apply_registration(sent(**fields), current, NOW) == current


@given(FIELDS)
def test_registering_the_stored_service_changes_nothing(fields: dict[str, Any]) -> None:
    current = stored(**fields)

    assert apply_registration(current, current, NOW) == current
    assert apply_update(current, FieldMask(), current, NOW) == current


@given(FIELDS, FIELDS)
def test_registration_replaces_the_content_and_keeps_registered_at(old: dict[str, Any], new: dict[str, Any]) -> None:
    service = apply_registration(sent(**new), stored(**old), NOW)

    expected = sent(**new)
    expected.group = expected.group or "a"
    for message in (service, expected):
        message.ClearField("health")
    assert service.registered_at == THEN
    for field in ("registered_at", "updated_at", "revision"):
        service.ClearField(field)
    assert service == expected


@pytest.mark.parametrize("status", [HealthStatus.HEALTH_STATUS_UNSPECIFIED, UNKNOWN])
@pytest.mark.parametrize("was", [HEALTHY, UNHEALTHY, UNKNOWN, MAINTENANCE])
def test_registration_without_a_status_keeps_the_health(
    status: HealthStatus.ValueType, was: HealthStatus.ValueType
) -> None:
    current = stored(health=health(was, error="as it was", last_check=THEN))

    service = apply_registration(sent(version="9", health=health(status, error="new")), current, NOW)

    assert service.health == current.health


def test_registration_with_the_same_status_keeps_the_health() -> None:
    current = stored(health=health(HEALTHY, last_check=THEN, response_time={"seconds": 1}))

    service = apply_registration(sent(health=health(HEALTHY, last_check=NOW)), current, NOW)

    assert service == current


@pytest.mark.parametrize("was", [UNHEALTHY, UNKNOWN, MAINTENANCE])
def test_registration_with_another_status_replaces_the_health(was: HealthStatus.ValueType) -> None:
    current = stored(health=health(was, error="as it was"))

    service = apply_registration(sent(health=health(HEALTHY, last_check=NOW)), current, NOW)

    assert service.health == Health(status=HEALTHY, last_check=NOW, status_changed_at=NOW)


@pytest.mark.parametrize("change", ["registration", "update"])
def test_new_endpoint_resets_the_health(change: str) -> None:
    current = stored(health=health(UNHEALTHY, error="as it was"))
    elsewhere = sent(endpoint="http://elsewhere.test")

    if change == "registration":
        service = apply_registration(elsewhere, current, NOW)
    else:
        service = apply_update(elsewhere, FieldMask(paths=["endpoint"]), current, NOW)

    assert service.health == Health(status=UNKNOWN, status_changed_at=NOW)


@pytest.mark.parametrize("change", ["registration", "update"])
def test_new_endpoint_keeps_maintenance(change: str) -> None:
    current = stored(health=health(MAINTENANCE, error="new disks"))
    elsewhere = sent(endpoint="http://elsewhere.test")

    if change == "registration":
        service = apply_registration(elsewhere, current, NOW)
    else:
        service = apply_update(elsewhere, FieldMask(paths=["endpoint"]), current, NOW)

    assert service.health == current.health


def test_status_sent_with_a_new_endpoint_is_used() -> None:
    current = stored(health=health(HEALTHY, error="as it was"))

    service = apply_registration(sent(endpoint="http://elsewhere.test", health=health(HEALTHY)), current, NOW)

    assert service.health == Health(status=HEALTHY, status_changed_at=THEN)


# Instances.


@pytest.mark.parametrize("was", [UNHEALTHY, UNKNOWN, MAINTENANCE])
def test_takeover_starts_the_health_over_unless_healthy(was: HealthStatus.ValueType) -> None:
    current = stored(instance_id="one", draining=True, health=health(was, error="as it was", last_check=THEN))

    service = apply_registration(sent(instance_id="two"), current, NOW)

    changed = THEN if was == UNKNOWN else NOW
    assert service.health == Health(status=UNKNOWN, status_changed_at=changed)
    assert (service.instance_id, service.draining, service.registered_at) == ("two", False, THEN)


@pytest.mark.parametrize(
    ("change", "kept"),
    [({"version": "2"}, True), ({"endpoint": "http://elsewhere.test"}, False), ({"health_check": {"tcp": {}}}, False)],
    ids=["version", "endpoint", "health check"],
)
def test_takeover_keeps_healthy_only_where_the_probes_stay(change: dict[str, Any], kept: bool) -> None:  # noqa: FBT001
    current = stored(instance_id="one", health=health(HEALTHY, last_check=THEN))

    for instance_id in ("two", ""):
        service = apply_registration(sent(instance_id=instance_id, **change), current, NOW)

        assert (service.health == current.health) is kept
        assert (service.health.status == HEALTHY) is kept


def test_maintenance_of_an_operator_survives_any_change() -> None:
    current = stored(instance_id="one", health=health(MAINTENANCE))
    current.maintenance.reason = "new disks"
    elsewhere = sent(instance_id="two", endpoint="http://elsewhere.test", maintenance={"reason": "forged"})

    for service in (
        apply_registration(elsewhere, current, NOW),
        apply_update(elsewhere, FieldMask(paths=["*"]), current, NOW),
    ):
        assert service.maintenance == current.maintenance


def test_draining_is_that_of_the_registration() -> None:
    current = stored(instance_id="one", draining=True)

    assert not apply_registration(sent(instance_id="one"), current, NOW).draining
    assert apply_registration(sent(instance_id="one", draining=True), current, NOW) == current


@pytest.mark.parametrize("change", ["registration", "update"])
def test_health_ends_with_the_probes_that_found_it(change: str) -> None:
    current = stored(health=health(UNHEALTHY, error="connection refused"), health_check={"http": {"path": "/up"}})
    for probe, status in (("heartbeat", HEALTHY), ("none", UNKNOWN), ("tcp", UNHEALTHY)):
        changed = sent(health_check={probe: {}})

        if change == "registration":
            service = apply_registration(changed, current, NOW)
        else:
            service = apply_update(changed, FieldMask(paths=["health_check"]), current, NOW)

        assert service.health.status == status


# Update.

PATHS = ["endpoint", "version", "group", "metadata", "metadata.tags", "metadata.author", "ttl", "capabilities"]


def value_at(service: Service, path: str) -> Any:
    """Return the value of a field; an unset field has its default."""
    value: Any = service
    for name in path.split("."):
        value = getattr(value, name)
    return list(value) if path in ("capabilities", "metadata.tags") else value


@given(FIELDS, FIELDS, st.lists(st.sampled_from(PATHS), unique=True, min_size=1))
def test_update_changes_only_the_fields_of_its_mask(old: dict[str, Any], new: dict[str, Any], paths: list[str]) -> None:
    current, wanted = stored(**old), sent(**new)

    service = apply_update(wanted, FieldMask(paths=paths), current, NOW)

    for path in PATHS:
        if path == "group":
            expected = (wanted.group or "a") if path in paths else current.group
        elif path == "metadata":
            continue
        else:
            taken = path in paths or path.partition(".")[0] in paths
            expected = value_at(wanted if taken else current, path)
        assert value_at(service, path) == expected
    if service.endpoint == current.endpoint:
        assert service.health == current.health


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("metadata.tags", lambda service: list(service.metadata.tags)),
        ("metadata.labels", lambda service: dict(service.metadata.labels)),
        ("metadata.author", lambda service: service.metadata.author),
        ("metadata", lambda service: service.HasField("metadata")),
        ("ttl", lambda service: service.HasField("ttl")),
        ("capabilities", lambda service: list(service.capabilities)),
        ("health_check.interval", lambda service: service.health_check.HasField("interval")),
        ("health_check.http", lambda service: service.health_check.HasField("http")),
        ("health.error", lambda service: service.health.error),
    ],
)
def test_path_of_an_unset_field_clears_it(path: str, read: Any) -> None:
    current = stored(
        metadata={"tags": ["x"], "author": "me", "labels": {"k": "v"}},
        ttl={"seconds": 60},
        capabilities=[{"name": "read"}],
        health_check={"http": {"path": "/up"}, "interval": {"seconds": 9}},
        health=health(HEALTHY, error="once"),
    )
    assert read(current)

    assert not read(apply_update(Service(name="a"), FieldMask(paths=[path]), current, NOW))


def test_clearing_unset_fields_changes_nothing() -> None:
    current = stored()
    paths = [
        "metadata.tags",
        "metadata.labels",
        "health_check.interval",
        "health_check.http.headers",
        "ttl",
        "metadata",
    ]

    assert apply_update(Service(name="a"), FieldMask(paths=paths), current, NOW) == current


def test_clearing_the_group_restores_the_default() -> None:
    assert apply_update(sent(), FieldMask(paths=["group"]), stored(group="g"), NOW).group == "a"


def test_repeated_fields_are_replaced_not_merged() -> None:
    current = stored(metadata={"tags": ["x", "y"], "labels": {"a": "1", "b": "2"}}, capabilities=[{"name": "read"}])
    wanted = sent(metadata={"tags": ["z"], "labels": {"b": "3"}}, capabilities=[{"name": "write"}])

    service = apply_update(wanted, FieldMask(paths=["metadata.tags", "metadata.labels", "capabilities"]), current, NOW)

    assert list(service.metadata.tags) == ["z"]
    assert dict(service.metadata.labels) == {"b": "3"}
    assert [capability.name for capability in service.capabilities] == ["write"]


def test_empty_mask_updates_the_fields_that_are_set() -> None:
    current = stored(version="1", metadata={"tags": ["x"]}, group="g")

    service = apply_update(Service(name="a", version="2"), FieldMask(), current, NOW)

    assert service.version == "2"
    service.version = "1"
    assert service == current


def test_star_replaces_all_fields() -> None:
    current = stored(metadata={"tags": ["x"]}, group="g", ttl={"seconds": 60}, health=health(MAINTENANCE))

    service = apply_update(sent(version="2"), FieldMask(paths=["*"]), current, NOW)

    expected = sent(version="2", group="a", registered_at=THEN, updated_at=THEN, revision=7)
    expected.health.CopyFrom(Health(status=UNKNOWN, status_changed_at=NOW))
    assert service == expected


@pytest.mark.parametrize("paths", [["health"], ["health.status"], []], ids=["health", "health.status", "empty mask"])
def test_update_of_the_status_sets_status_changed_at(paths: list[str]) -> None:
    current = stored(health=health(MAINTENANCE))

    service = apply_update(Service(name="a", health=Health(status=HEALTHY)), FieldMask(paths=paths), current, NOW)

    assert service.health == Health(status=HEALTHY, status_changed_at=NOW)


def test_update_of_other_health_fields_keeps_status_changed_at() -> None:
    current = stored(health=health(UNHEALTHY, error="old"))

    service = apply_update(
        Service(name="a", health=Health(error="new")), FieldMask(paths=["health.error"]), current, NOW
    )

    assert service.health == Health(status=UNHEALTHY, error="new", status_changed_at=THEN)


# Health, change times and event types.


def test_status_changed_at_changes_only_with_the_status() -> None:
    current = stored(health=health(HEALTHY, error="gone"))

    same = replace_health(current, Health(status=HEALTHY, last_check=NOW), NOW)
    other = replace_health(current, Health(status=UNHEALTHY, last_check=NOW), NOW)

    assert same.health == Health(status=HEALTHY, last_check=NOW, status_changed_at=THEN)
    assert other.health == Health(status=UNHEALTHY, last_check=NOW, status_changed_at=NOW)
    for service in (same, other):
        service.health.CopyFrom(current.health)
        assert service == current


def test_change_time_sets_registered_at_only_once() -> None:
    service = set_change_time(sent(), THEN)
    assert (service.registered_at, service.updated_at) == (THEN, THEN)

    set_change_time(service, NOW)
    assert (service.registered_at, service.updated_at) == (THEN, NOW)


@pytest.mark.parametrize(
    ("before", "after", "content"),
    [
        ({"health": health(HEALTHY)}, {"health": health(UNHEALTHY)}, False),
        ({"health": health(HEALTHY)}, {"health": health(UNHEALTHY, error="why")}, False),
        ({"health": health(HEALTHY)}, {"health": health(UNHEALTHY), "version": "2"}, True),
        ({"version": "1"}, {"version": "2"}, True),
        ({}, {"metadata": {"tags": ["x"]}}, True),
        ({"health": health(HEALTHY, error="a")}, {"health": health(HEALTHY, error="b")}, True),
        ({}, {"ttl": {"seconds": 60}}, True),
    ],
)
def test_update_type_is_health_changed_only_if_just_the_status_differs(
    before: dict[str, Any],
    after: dict[str, Any],
    content: bool,  # noqa: FBT001
) -> None:
    one, other = stored(**before), stored(**after)
    other.revision, other.updated_at.seconds = 99, 99

    expected = EventType.EVENT_TYPE_SERVICE_UPDATED if content else EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
    assert update_type(one, other) == expected
