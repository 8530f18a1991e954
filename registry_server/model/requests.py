"""Validation of the fields that several requests share."""

from collections.abc import Sequence, Sized
from datetime import timedelta
from functools import partial
from typing import Final

from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.registry_service_pb2 import Lease
from ossa_common.violations import AND_MORE, MAX_VIOLATIONS, Violation
from registry_server.errors import InvalidRequest
from registry_server.model import rules
from registry_server.model.tokens import decode_page_token

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
DEFAULT_SEARCH_LIMIT: Final = 10
MAX_SEARCH_LIMIT: Final = 100
MAX_SEARCH_LENGTH: Final = 256
MAX_NAMES = 10_000
MAX_BATCH_SIZE = 500
MAX_TYPES: Final = 64
"""More than there are types, because repetitions are valid."""
DEFAULT_BOOKMARK_SECONDS = 30.0
_BOOKMARK_INTERVAL_RANGE = (timedelta(milliseconds=100), timedelta(hours=1))


def invalid_request(violations: Sequence[Violation]) -> InvalidRequest:
    """Return the error for violations; the last of too many is replaced by "and more"."""
    if len(violations) > MAX_VIOLATIONS:
        violations = [*violations[: MAX_VIOLATIONS - 1], AND_MORE]
    return InvalidRequest(violations)


def raise_if_invalid(violations: Sequence[Violation]) -> None:
    """Raise ``InvalidRequest`` if there are violations."""
    if violations:
        raise invalid_request(violations)


def check_not_negative(value: int, at: str, violations: list[Violation]) -> None:
    """Reject negative revisions, sizes and loads."""
    if value < 0:
        violations.append(Violation(at, f"is {value}; must not be negative"))


def check_search(text: str, limit: int, at: str, violations: list[Violation]) -> None:
    """Check the text and the limit of a search; ``at`` is the field of the text."""
    rules.check_length(text, at, MAX_SEARCH_LENGTH, violations)
    if not any(map(str.isalnum, text)):
        violations.append(Violation(at, "must have at least one letter or digit"))
    if not 0 <= limit <= MAX_SEARCH_LIMIT:
        violations.append(Violation("limit", f"is {limit}; must be from 1 to {MAX_SEARCH_LIMIT}, or 0 for the default"))


def name_violations(names: Sequence[str], leases: Sized = ()) -> list[Violation]:
    """Check the names of a heartbeat.

    Args:
        names: Names to check.
        leases: Leases of the same request, which ``lease_violations`` checks.

    Raises:
        InvalidRequest: The request has no name, or too many.
    """
    count = len(names) + len(leases)
    if not count:
        raise InvalidRequest([Violation("names", "is empty; name at least one service")])
    if count > MAX_NAMES:
        at = "leases" if leases else "names"
        raise InvalidRequest([Violation(at, f"has {count} names; at most {MAX_NAMES} are allowed")])
    violations: list[Violation] = []
    for i, name in enumerate(names):
        rules.NAME.check(name, f"names[{i}]", violations)
        if len(violations) > MAX_VIOLATIONS:
            break
    return violations


def lease_violations(leases: Sequence[Lease], first: int) -> list[Violation]:
    """Check names, instance ids and loads of a part of the leases, of which the first one has this index."""
    found: list[Violation] = []
    violations: list[Violation] = []
    for i, lease in enumerate(leases, first):
        rules.NAME.check(lease.name, "name", found)
        rules.check_instance_id(lease.instance_id, "instance_id", found)
        if lease.HasField("load"):
            load = lease.load
            if load.in_flight < 0 or load.capacity < 0:
                check_not_negative(load.in_flight, "load.in_flight", found)
                check_not_negative(load.capacity, "load.capacity", found)
        if found:  # building the paths of all leases would take longer than the checks
            violations += [Violation(f"leases[{i}].{field}", description) for field, description in found]
            found.clear()
    return violations


def page_size(requested: int, violations: list[Violation]) -> int:
    """Return the page size: the default for 0, at most ``MAX_PAGE_SIZE`` (https://google.aip.dev/158)."""
    check_not_negative(requested, "page_size", violations)
    return min(requested, MAX_PAGE_SIZE) or DEFAULT_PAGE_SIZE


def page_start(secret: bytes, scope: bytes, token: str, violations: list[Violation]) -> str:
    """Return the last name of the previous page, or an empty string for the first page."""
    return rules.parse_optional(partial(decode_page_token, secret, scope), token, "page_token", violations) or ""


def check_types(types: Sequence[int], violations: list[Violation]) -> None:
    """Reject event types that are never sent, and lists with too many."""
    if len(types) > MAX_TYPES:
        rules.check_count(len(types), "types", MAX_TYPES, "types", violations)
        return
    for i, type_ in enumerate(types):
        if type_ not in EventType.values():
            violations.append(Violation(f"types[{i}]", f"{type_} is not an EventType"))
        elif type_ == EventType.EVENT_TYPE_UNSPECIFIED:
            violations.append(Violation(f"types[{i}]", "EVENT_TYPE_UNSPECIFIED is never sent; remove it"))


def bookmark_interval(requested: Duration | None, violations: list[Violation]) -> float:
    """Return the interval between bookmarks in seconds."""
    if requested is None:
        return DEFAULT_BOOKMARK_SECONDS
    found: list[Violation] = []
    rules.check_duration(requested, "bookmark_interval", *_BOOKMARK_INTERVAL_RANGE, found)
    violations += found
    return DEFAULT_BOOKMARK_SECONDS if found else requested.seconds + requested.nanos / 1e9
