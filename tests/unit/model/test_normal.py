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


def known(**fields: Any) -> Service:
    """A service as it has been registered then."""
    service = set_change_time(apply_registration(small_service("a", **fields), None, THEN), THEN)
    service.revision = 7
    return service


def sent(**fields: Any) -> Service:
    return small_service("a", **fields)


def health(status: HealthStatus.ValueType, **fields: Any) -> dict[str, Any]:
    return {"status": status, **fields}


# Registering.


def test_a_first_registration_fills_in_what_is_left_out() -> None:
    service = set_change_time(apply_registration(sent(), None, NOW), NOW)

    assert service.group == "a"
    assert service.health == Health(status=UNKNOWN, status_changed_at=NOW)
    assert service.registered_at == service.updated_at == NOW
    assert service.revision == 0


def test_a_registration_says_how_the_service_is_if_it_wants_to() -> None:
    service = apply_registration(sent(health=health(HEALTHY, last_check=THEN, error="none")), None, NOW)

    assert service.health == Health(status=HEALTHY, last_check=THEN, error="none", status_changed_at=NOW)


def test_what_is_output_only_is_not_taken_from_clients() -> None:
    liar = sent(registered_at=THEN, updated_at=THEN, revision=99, health=health(HEALTHY, status_changed_at=THEN))

    first = apply_registration(liar, None, NOW)
    again = apply_registration(liar, known(), NOW)

    assert not first.HasField("registered_at")
    assert not first.HasField("updated_at")
    assert first.revision == 0
    assert first.health.status_changed_at == NOW
    assert (again.registered_at, again.updated_at, again.revision) == (THEN, THEN, 7)
    assert again.health.status_changed_at == NOW


def test_what_a_client_sent_is_not_changed() -> None:
    original = sent(health=health(HEALTHY), revision=5)
    copy = Service()
    copy.CopyFrom(original)

    apply_registration(original, known(), NOW)
    apply_update(original, FieldMask(), known(), NOW)

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
        "ttl": st.fixed_dictionaries({"seconds": st.sampled_from([0, 60])}),
        "capabilities": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["read", "write"])}), max_size=1),
    },
)


@given(FIELDS)
def test_registering_the_same_again_changes_nothing(fields: dict[str, Any]) -> None:
    current = known(**fields)

    assert apply_registration(sent(**fields), current, NOW) == current


@given(FIELDS)
def test_registering_what_was_read_changes_nothing(fields: dict[str, Any]) -> None:
    current = known(**fields)

    assert apply_registration(current, current, NOW) == current
    assert apply_update(current, FieldMask(), current, NOW) == current


@given(FIELDS, FIELDS)
def test_a_registration_takes_all_content_and_keeps_when_it_was_first(old: dict[str, Any], new: dict[str, Any]) -> None:
    service = apply_registration(sent(**new), known(**old), NOW)

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
def test_registering_again_without_a_status_keeps_what_is_known(
    status: HealthStatus.ValueType, was: HealthStatus.ValueType
) -> None:
    current = known(health=health(was, error="as it was", last_check=THEN))

    service = apply_registration(sent(version="9", health=health(status, error="new")), current, NOW)

    assert service.health == current.health


def test_registering_again_with_the_status_that_is_known_keeps_what_is_known() -> None:
    current = known(health=health(HEALTHY, last_check=THEN, response_time={"seconds": 1}))

    service = apply_registration(sent(health=health(HEALTHY, last_check=NOW)), current, NOW)

    assert service == current


@pytest.mark.parametrize("was", [UNHEALTHY, UNKNOWN, MAINTENANCE])
def test_registering_again_with_another_status_takes_it(was: HealthStatus.ValueType) -> None:
    current = known(health=health(was, error="as it was"))

    service = apply_registration(sent(health=health(HEALTHY, last_check=NOW)), current, NOW)

    assert service.health == Health(status=HEALTHY, last_check=NOW, status_changed_at=NOW)


@pytest.mark.parametrize("change", ["registration", "update"])
def test_what_is_known_of_one_endpoint_is_not_known_of_another(change: str) -> None:
    current = known(health=health(UNHEALTHY, error="as it was"))
    elsewhere = sent(endpoint="http://elsewhere.test")

    if change == "registration":
        service = apply_registration(elsewhere, current, NOW)
    else:
        service = apply_update(elsewhere, FieldMask(paths=["endpoint"]), current, NOW)

    assert service.health == Health(status=UNKNOWN, status_changed_at=NOW)


@pytest.mark.parametrize("change", ["registration", "update"])
def test_what_its_operator_took_out_stays_out_at_another_endpoint(change: str) -> None:
    current = known(health=health(MAINTENANCE, error="new disks"))
    elsewhere = sent(endpoint="http://elsewhere.test")

    if change == "registration":
        service = apply_registration(elsewhere, current, NOW)
    else:
        service = apply_update(elsewhere, FieldMask(paths=["endpoint"]), current, NOW)

    assert service.health == current.health


def test_a_status_given_for_another_endpoint_is_taken() -> None:
    current = known(health=health(HEALTHY, error="as it was"))

    service = apply_registration(sent(endpoint="http://elsewhere.test", health=health(HEALTHY)), current, NOW)

    assert service.health == Health(status=HEALTHY, status_changed_at=THEN)


# Updating.

PATHS = ["endpoint", "version", "group", "metadata", "metadata.tags", "metadata.author", "ttl", "capabilities"]


def value_at(service: Service, path: str) -> Any:
    """The value as it reads: what is unset reads as its default."""
    value: Any = service
    for name in path.split("."):
        value = getattr(value, name)
    return list(value) if path in ("capabilities", "metadata.tags") else value


@given(FIELDS, FIELDS, st.lists(st.sampled_from(PATHS), unique=True, min_size=1))
def test_an_update_changes_the_fields_of_its_mask_and_no_others(
    old: dict[str, Any], new: dict[str, Any], paths: list[str]
) -> None:
    current, wanted = known(**old), sent(**new)

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
def test_a_path_that_is_unset_clears_its_field(path: str, read: Any) -> None:
    current = known(
        metadata={"tags": ["x"], "author": "me", "labels": {"k": "v"}},
        ttl={"seconds": 60},
        capabilities=[{"name": "read"}],
        health_check={"http": {"path": "/up"}, "interval": {"seconds": 9}},
        health=health(HEALTHY, error="once"),
    )
    assert read(current)

    assert not read(apply_update(Service(name="a"), FieldMask(paths=[path]), current, NOW))


def test_clearing_what_is_not_there_changes_nothing() -> None:
    current = known()
    paths = [
        "metadata.tags",
        "metadata.labels",
        "health_check.interval",
        "health_check.http.headers",
        "ttl",
        "metadata",
    ]

    assert apply_update(Service(name="a"), FieldMask(paths=paths), current, NOW) == current


def test_clearing_the_group_gives_the_default() -> None:
    assert apply_update(sent(), FieldMask(paths=["group"]), known(group="g"), NOW).group == "a"


def test_repeated_fields_are_replaced_and_not_joined() -> None:
    current = known(metadata={"tags": ["x", "y"], "labels": {"a": "1", "b": "2"}}, capabilities=[{"name": "read"}])
    wanted = sent(metadata={"tags": ["z"], "labels": {"b": "3"}}, capabilities=[{"name": "write"}])

    service = apply_update(wanted, FieldMask(paths=["metadata.tags", "metadata.labels", "capabilities"]), current, NOW)

    assert list(service.metadata.tags) == ["z"]
    assert dict(service.metadata.labels) == {"b": "3"}
    assert [capability.name for capability in service.capabilities] == ["write"]


def test_an_empty_mask_takes_what_is_set() -> None:
    current = known(version="1", metadata={"tags": ["x"]}, group="g")

    service = apply_update(Service(name="a", version="2"), FieldMask(), current, NOW)

    assert service.version == "2"
    service.version = "1"
    assert service == current


def test_a_star_takes_everything() -> None:
    current = known(metadata={"tags": ["x"]}, group="g", ttl={"seconds": 60}, health=health(MAINTENANCE))

    service = apply_update(sent(version="2"), FieldMask(paths=["*"]), current, NOW)

    expected = sent(version="2", group="a", registered_at=THEN, updated_at=THEN, revision=7)
    expected.health.CopyFrom(Health(status=UNKNOWN, status_changed_at=NOW))
    assert service == expected


@pytest.mark.parametrize("paths", [["health"], ["health.status"], []], ids=["health", "health.status", "what is set"])
def test_an_update_of_the_status_is_taken_and_dated(paths: list[str]) -> None:
    current = known(health=health(MAINTENANCE))

    service = apply_update(Service(name="a", health=Health(status=HEALTHY)), FieldMask(paths=paths), current, NOW)

    assert service.health == Health(status=HEALTHY, status_changed_at=NOW)


def test_an_update_of_other_health_does_not_date_the_status() -> None:
    current = known(health=health(UNHEALTHY, error="old"))

    service = apply_update(
        Service(name="a", health=Health(error="new")), FieldMask(paths=["health.error"]), current, NOW
    )

    assert service.health == Health(status=UNHEALTHY, error="new", status_changed_at=THEN)


# Health, stamps and kinds of change.


def test_another_status_is_dated_and_the_same_keeps_its_date() -> None:
    current = known(health=health(HEALTHY, error="gone"))

    same = replace_health(current, Health(status=HEALTHY, last_check=NOW), NOW)
    other = replace_health(current, Health(status=UNHEALTHY, last_check=NOW), NOW)

    assert same.health == Health(status=HEALTHY, last_check=NOW, status_changed_at=THEN)
    assert other.health == Health(status=UNHEALTHY, last_check=NOW, status_changed_at=NOW)
    for service in (same, other):
        service.health.CopyFrom(current.health)
        assert service == current


def test_a_stamp_dates_the_change_and_the_registration_once() -> None:
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
def test_a_change_of_the_status_alone_is_told_from_one_of_content(
    before: dict[str, Any],
    after: dict[str, Any],
    content: bool,  # noqa: FBT001
) -> None:
    one, other = known(**before), known(**after)
    other.revision, other.updated_at.seconds = 99, 99

    expected = EventType.EVENT_TYPE_SERVICE_UPDATED if content else EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
    assert update_type(one, other) == expected
