import base64
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from registry_server import errors
from registry_server.errors import InvalidRequest, RegistryError, Violation
from registry_server.rpc.status import CODES, DETAILS_KEY, code_of, status_of, trailers_of

_M = TypeVar("_M", bound=Message)

MOST_TRAILER_BYTES = 8 << 10  # that clients take by default
OVERHEAD = 32  # that HTTP/2 counts for each of them (RFC 9113, 6.5.2)
NAME = "n" * 128

# Every error that a caller may meet: code, facts for programs, seconds to wait.
TABLE: list[tuple[RegistryError, grpc.StatusCode, dict[str, str], float | None]] = [
    (InvalidRequest([Violation("name", "is bad")]), grpc.StatusCode.INVALID_ARGUMENT, {}, None),
    (errors.ServiceNotFound("a"), grpc.StatusCode.NOT_FOUND, {"name": "a"}, None),
    (errors.ServiceExists("a"), grpc.StatusCode.ALREADY_EXISTS, {"name": "a"}, None),
    (
        errors.RevisionMismatch("a", 3, 5),
        grpc.StatusCode.ABORTED,
        {"name": "a", "expectedRevision": "3", "actualRevision": "5"},
        None,
    ),
    (errors.WriteConflict("a"), grpc.StatusCode.ABORTED, {}, None),
    (errors.RevisionNotReached(7, 5), grpc.StatusCode.DEADLINE_EXCEEDED, {}, None),
    (errors.CursorExpired("too old"), grpc.StatusCode.OUT_OF_RANGE, {}, None),
    (errors.WatcherTooSlow(9), grpc.StatusCode.RESOURCE_EXHAUSTED, {}, None),
    (errors.StoreUnavailable(), grpc.StatusCode.UNAVAILABLE, {}, 1.0),
    (
        errors.NotReplicated(7, 1, 2),
        grpc.StatusCode.UNAVAILABLE,
        {"revision": "7", "confirmedReplicas": "1", "wantedReplicas": "2"},
        1.0,
    ),
    (errors.ShuttingDown(), grpc.StatusCode.UNAVAILABLE, {}, 0.5),
    (
        errors.Overloaded("calls", 3, "too much is under way"),
        grpc.StatusCode.UNAVAILABLE,
        {"limit": "calls", "most": "3"},
        1.0,
    ),
    (errors.ProbingDisabled(), grpc.StatusCode.UNIMPLEMENTED, {}, None),
    (errors.Unauthenticated(), grpc.StatusCode.UNAUTHENTICATED, {}, None),
    (errors.IssuerUnavailable("corp"), grpc.StatusCode.UNAVAILABLE, {}, 5.0),
    (errors.PermissionDenied("not yours"), grpc.StatusCode.PERMISSION_DENIED, {}, None),
    (errors.RateLimited(0.25), grpc.StatusCode.RESOURCE_EXHAUSTED, {}, 0.25),
    (
        errors.LimitExceeded("watches", 3, "too many watches"),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        {"limit": "watches", "most": "3"},
        5.0,
    ),
]


def below(root: type[RegistryError]) -> Iterator[type[RegistryError]]:
    for each in root.__subclasses__():
        yield each
        yield from below(each)


CLASSES = [each for each in below(RegistryError) if each.__module__ == errors.__name__]
"""Every error of the product, without the root."""


def detail(status: Status, kind: type[_M]) -> _M | None:
    """The detail of a kind, of which there is at most one."""
    found = [packed for packed in status.details if packed.Is(kind.DESCRIPTOR)]
    assert len(found) <= 1
    if not found:
        return None
    unpacked = kind()
    assert found[0].Unpack(unpacked)
    return unpacked


def trailer_bytes(status: Status) -> int:
    """What the trailers of a status take on the wire."""
    ((key, details),) = trailers_of(status)
    encoded = {
        "grpc-status": str(status.code),
        "grpc-message": quote(status.message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"),
        key: base64.b64encode(details).decode(),
    }
    return sum(len(name) + len(value) + OVERHEAD for name, value in encoded.items())


# The tree.


def test_every_error_has_a_reason_of_its_own() -> None:
    reasons = [each.reason for each in CLASSES]

    assert len(set(reasons)) == len(reasons)
    assert RegistryError.reason not in reasons


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_reason_is_a_word_that_programs_can_switch_on(kind: type[RegistryError]) -> None:
    assert "reason" in vars(kind)
    # What google.rpc.ErrorInfo.reason may be.
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", kind.reason)
    assert len(kind.reason) <= 63


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_tree_that_the_module_draws(kind: type[RegistryError]) -> None:
    assert re.search(rf"── {kind.__name__}\b", errors.__doc__ or "")


def test_every_error_has_a_row_in_the_table_of_codes_and_here() -> None:
    assert CODES.keys() == set(CLASSES) == {type(error) for error, *_ in TABLE}


def test_an_invalid_request_names_what_is_invalid() -> None:
    with pytest.raises(ValueError, match="at least one violation"):
        InvalidRequest([])

    error = InvalidRequest([Violation("a", "is bad"), Violation("b", "is worse")])

    assert str(error) == "a: is bad; b: is worse"
    assert error.violations == (("a", "is bad"), ("b", "is worse"))


# Status.


@pytest.mark.parametrize(("error", "code", "facts", "wait"), TABLE, ids=[type(error).__name__ for error, *_ in TABLE])
def test_an_error_becomes_a_status_with_its_details(
    error: RegistryError, code: grpc.StatusCode, facts: dict[str, str], wait: float | None
) -> None:
    with capture_logs() as logs:
        status = status_of(error)

    assert code_of(status) is code
    assert status.message == str(error)
    assert detail(status, ErrorInfo) == ErrorInfo(reason=error.reason, domain="registry.ossa", metadata=facts)
    retry = detail(status, RetryInfo)
    assert (retry.retry_delay.ToTimedelta().total_seconds() if retry else None) == wait
    assert (detail(status, BadRequest) is not None) is isinstance(error, InvalidRequest)
    assert len(status.details) == 1 + (wait is not None) + isinstance(error, InvalidRequest)
    assert logs == []  # callers' errors are no news


def test_the_details_travel_in_the_trailer_that_clients_know() -> None:
    status = status_of(errors.ServiceNotFound("a"))

    assert DETAILS_KEY == "grpc-status-details-bin"
    assert trailers_of(status) == ((DETAILS_KEY, status.SerializeToString()),)


def test_an_invalid_request_tells_every_bad_field_and_what_is_wrong_with_it() -> None:
    violations = [Violation(f"service.tags[{i}]", f"is {i} too many") for i in range(20)]

    bad_request = detail(status_of(InvalidRequest(violations)), BadRequest)

    assert bad_request is not None
    assert [(each.field, each.description) for each in bad_request.field_violations] == violations


LONG_VIOLATIONS = {
    "tags": [Violation(f"service.metadata.tags[{i}]", f"{'x' * 64!r}... has a comma") for i in range(100)],
    "capabilities": [Violation(f"service.capabilities[{i}].name", "is not " * 10) for i in range(100)],
    "names": [Violation(f"names[{i}]", "\N{SNOWMAN}" * 60 + " is not a name") for i in range(100)],
    "short": [Violation(f"types[{i}]", f"{i} is not an EventType") for i in range(100)],
}


@pytest.mark.parametrize("violations", LONG_VIOLATIONS.values(), ids=LONG_VIOLATIONS)
def test_a_hundred_bad_fields_are_all_named_within_what_clients_take(violations: list[Violation]) -> None:
    status = status_of(InvalidRequest(violations))

    assert trailer_bytes(status) <= MOST_TRAILER_BYTES
    bad_request = detail(status, BadRequest)
    assert bad_request is not None
    assert [each.field for each in bad_request.field_violations] == [violation.field for violation in violations]
    # The first ones are explained, as many as there is room for.
    assert bad_request.field_violations[0].description == violations[0].description


def test_fields_with_names_too_long_to_tell_all_are_told_as_far_as_they_fit() -> None:
    violations = [Violation(f'service.metadata.labels["{i}{"k" * 900}"]', "is bad") for i in range(100)]

    status = status_of(InvalidRequest(violations))

    assert trailer_bytes(status) <= MOST_TRAILER_BYTES
    bad_request = detail(status, BadRequest)
    assert bad_request is not None
    *told, last = bad_request.field_violations
    assert [each.field for each in told] == [violation.field for violation in violations[: len(told)]]
    assert told
    assert (last.field, last.description) == ("...", "and more")


TEXTS = st.text(max_size=400) | st.integers(0, 400).map(lambda length: "\N{PARTY POPPER}" * length)


@given(st.lists(st.builds(Violation, TEXTS, TEXTS), min_size=1, max_size=100))
def test_whatever_is_wrong_fits_what_clients_take(violations: Sequence[Violation]) -> None:
    status = status_of(InvalidRequest(violations))

    assert trailer_bytes(status) <= MOST_TRAILER_BYTES
    assert Status.FromString(status.SerializeToString()) == status


@pytest.mark.parametrize(
    "error",
    [
        errors.ServiceNotFound(NAME),
        errors.ServiceExists(NAME),
        errors.RevisionMismatch(NAME, 2**63 - 1, 2**63 - 1),
        errors.WriteConflict(NAME),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_longest_name_fits_too(error: RegistryError) -> None:
    status = status_of(error)

    assert trailer_bytes(status) <= MOST_TRAILER_BYTES
    assert NAME in status.message


# What is no error of ours.


class Unlisted(RegistryError):
    reason = "UNLISTED"


class Inherited(errors.ServiceNotFound):
    """Not in the table itself, though its parent is."""


UNEXPECTED: list[Exception] = [
    KeyError("secret"),
    ValueError("secret"),
    RuntimeError("secret"),
    errors.ConfigurationError("secret"),
    RegistryError("secret"),
    Unlisted("secret"),
    Inherited("secret"),
    ExceptionGroup("secret", [errors.ServiceNotFound("secret")]),
]


@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
def test_an_unexpected_error_tells_the_log_everything_and_the_client_nothing(error: Exception) -> None:
    with capture_logs() as logs:
        status = status_of(error)

    assert code_of(status) is grpc.StatusCode.INTERNAL
    assert detail(status, ErrorInfo) == ErrorInfo(reason="INTERNAL", domain="registry.ossa")
    assert len(status.details) == 1
    assert b"secret" not in status.SerializeToString()
    assert type(error).__name__.encode() not in status.SerializeToString()
    entry: Any
    (entry,) = logs
    assert (entry["log_level"], entry["exc_info"]) == ("error", error)
