from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.registry_service_pb2 import Lease
from ossa_common.cursors import Cursor, decode_cursor, encode_cursor
from ossa_common.violations import Violation
from registry_server.errors import InvalidRequest
from registry_server.model import requests, rules
from registry_server.model.tokens import encode_page_token

SECRET = b"secret"


def fields_of(check: Callable[[list[Violation]], Any]) -> list[str]:
    violations = list[Violation]()
    check(violations)
    return [violation.field for violation in violations]


def test_request_without_violations_is_accepted() -> None:
    requests.raise_if_invalid([])


def test_last_of_more_than_a_hundred_violations_is_replaced() -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.raise_if_invalid([Violation(f"field{i}", "is bad") for i in range(150)])

    assert [violation.field for violation in caught.value.violations] == [*(f"field{i}" for i in range(99)), "..."]


@pytest.mark.parametrize(("value", "bad"), [(0, []), (1, []), (2**62, []), (-1, ["at"]), (-(2**62), ["at"])])
def test_negative_number_is_refused(value: int, bad: list[str]) -> None:
    assert fields_of(lambda violations: requests.check_not_negative(value, "at", violations)) == bad


@pytest.mark.parametrize("count", [1, requests.MAX_NAMES])
def test_one_to_ten_thousand_names_are_accepted(count: int) -> None:
    names = [f"s{i}" for i in range(count)]

    assert requests.name_violations(names) == requests.name_violations(names[: count // 2], names[count // 2 :]) == []


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        ([], ["names"]),
        (["a"] * (requests.MAX_NAMES + 1), ["names"]),
        (["good", "", "also.good", "-bad", "a b", "x" * 129], ["names[1]", "names[3]", "names[4]", "names[5]"]),
        (["bad name"] * 150, [*(f"names[{i}]" for i in range(99)), "..."]),
    ],
    ids=["none", "too many", "some bad", "many bad"],
)
def test_every_invalid_name_is_reported(names: list[str], fields: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.raise_if_invalid(requests.name_violations(names))

    assert [violation.field for violation in caught.value.violations] == fields


def test_every_invalid_lease_is_reported() -> None:
    leases = [Lease(name="a", instance_id="i" * 64), Lease(name="-"), Lease(name="b", instance_id="x y"), Lease()]

    violations = requests.lease_violations(leases, 500)

    fields = ["leases[501].name", "leases[502].instance_id", "leases[503].name"]
    assert [violation.field for violation in violations] == fields


def test_names_and_leases_together_are_limited() -> None:
    with pytest.raises(InvalidRequest, match="leases: has 10001 names"):
        requests.name_violations(["a"] * requests.MAX_NAMES, [Lease(name="a")])


@pytest.mark.parametrize(
    ("requested", "size"), [(0, 100), (1, 1), (100, 100), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_page_size_is_the_requested_one_up_to_the_maximum(requested: int, size: int) -> None:
    violations = list[Violation]()

    assert requests.page_size(requested, violations) == size
    assert violations == []


def test_negative_page_size_is_refused() -> None:
    assert fields_of(lambda violations: requests.page_size(-1, violations)) == ["page_size"]


def test_page_starts_after_the_name_in_its_token() -> None:
    violations = list[Violation]()

    assert requests.page_start(SECRET, b"scope", "", violations) == ""
    assert requests.page_start(SECRET, b"scope", encode_page_token(SECRET, b"scope", "name"), violations) == "name"
    assert violations == []


@pytest.mark.parametrize("token", ["junk", encode_page_token(SECRET, b"another scope", "name")])
def test_page_token_of_another_query_is_refused(token: str) -> None:
    assert fields_of(lambda violations: requests.page_start(SECRET, b"scope", token, violations)) == ["page_token"]


def test_cursor_is_decoded_if_present() -> None:
    violations = list[Violation]()
    cursor = Cursor("abc", 7, resumable=False)

    assert rules.parse_optional(decode_cursor, "", "cursor", violations) is None
    assert rules.parse_optional(decode_cursor, encode_cursor(cursor), "cursor", violations) == cursor
    assert violations == []


def test_malformed_cursor_is_refused() -> None:
    assert fields_of(lambda violations: rules.parse_optional(decode_cursor, "junk", "cursor", violations)) == ["cursor"]


def test_event_types_that_are_sent_are_accepted() -> None:
    sent = [kind for kind in EventType.values() if kind != EventType.EVENT_TYPE_UNSPECIFIED]

    assert fields_of(lambda violations: requests.check_types(sent, violations)) == []
    assert fields_of(lambda violations: requests.check_types([], violations)) == []


@pytest.mark.parametrize(
    ("types", "fields"),
    [
        ([0], ["types[0]"]),
        ([1, 0, 99, 2, -1], ["types[1]", "types[2]", "types[4]"]),
        ([1] * 63 + [99], ["types[63]"]),
        ([99] * 64, [f"types[{i}]" for i in range(64)]),
        ([1] * 65, ["types"]),
    ],
    ids=["unspecified", "some", "a late one", "many", "too many"],
)
def test_event_types_that_are_never_sent_are_refused(types: list[int], fields: list[str]) -> None:
    assert fields_of(lambda violations: requests.check_types(types, violations)) == fields


@pytest.mark.parametrize(
    ("requested", "seconds"),
    [
        (None, 30.0),
        (Duration(nanos=100_000_000), 0.1),
        (Duration(seconds=2, nanos=500_000_000), 2.5),
        (Duration(seconds=3600), 3600.0),
    ],
)
def test_bookmark_interval_is_the_requested_one(requested: Duration | None, seconds: float) -> None:
    violations = list[Violation]()

    assert requests.bookmark_interval(requested, violations) == seconds
    assert violations == []


@pytest.mark.parametrize(
    "requested",
    [
        Duration(),
        Duration(nanos=99_999_999),
        Duration(seconds=-1),
        Duration(seconds=3600, nanos=1),
        Duration(seconds=1, nanos=-5),
        Duration(seconds=1, nanos=2_000_000_000),
    ],
    ids=str,
)
def test_bookmark_interval_out_of_range_is_refused(requested: Duration) -> None:
    assert fields_of(lambda violations: requests.bookmark_interval(requested, violations)) == ["bookmark_interval"]
