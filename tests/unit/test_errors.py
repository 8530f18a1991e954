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

from ossa_common.violations import Violation
from registry_server import errors
from registry_server.admission import OUTCOMES
from registry_server.errors import InvalidRequest, RegistryError
from registry_server.rpc.status import DETAILS_KEY, code_of, status_of, trailers_of

_M = TypeVar("_M", bound=Message)

MAX_TRAILER_BYTES = 8 << 10  # the default limit of clients
OVERHEAD = 32  # that HTTP/2 adds to the size of each field (RFC 9113, 6.5.2)
NAME = "n" * 128

# Every error of a call: status code, metadata, and retry delay in seconds.
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
    (errors.InstanceSuperseded("a"), grpc.StatusCode.ABORTED, {"name": "a"}, None),
    (errors.WriteConflict("a"), grpc.StatusCode.ABORTED, {}, None),
    (errors.RevisionNotReached(7, 5), grpc.StatusCode.DEADLINE_EXCEEDED, {}, None),
    (errors.CursorExpired("too old"), grpc.StatusCode.OUT_OF_RANGE, {}, None),
    (errors.WatcherTooSlow("9 events were buffered"), grpc.StatusCode.RESOURCE_EXHAUSTED, {}, None),
    (errors.StoreUnavailable(), grpc.StatusCode.UNAVAILABLE, {}, 1.0),
    (
        errors.NotReplicated(7, 1, 2),
        grpc.StatusCode.UNAVAILABLE,
        {"revision": "7", "confirmedReplicas": "1", "wantedReplicas": "2"},
        1.0,
    ),
    (errors.ShuttingDown(), grpc.StatusCode.UNAVAILABLE, {}, 0.5),
    (
        errors.Overloaded("calls", 3, "too many calls are in flight"),
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


def subclasses_of(root: type[RegistryError]) -> Iterator[type[RegistryError]]:
    for each in root.__subclasses__():
        yield each
        yield from subclasses_of(each)


CLASSES = [each for each in subclasses_of(RegistryError) if each.__module__ == errors.__name__]
"""Every error class of the registry except the base class."""


def detail(status: Status, kind: type[_M]) -> _M | None:
    """Return the only detail of a type, or ``None``."""
    found = [packed for packed in status.details if packed.Is(kind.DESCRIPTOR)]
    assert len(found) <= 1
    if not found:
        return None
    unpacked = kind()
    assert found[0].Unpack(unpacked)
    return unpacked


def trailer_bytes(status: Status) -> int:
    """Return the size of the trailers of a status on the wire."""
    ((key, details),) = trailers_of(status)
    encoded = {
        "grpc-status": str(status.code),
        "grpc-message": quote(status.message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}~"),
        key: base64.b64encode(details).decode(),
    }
    return sum(len(name) + len(value) + OVERHEAD for name, value in encoded.items())


# The tree.


def test_every_error_has_a_unique_reason() -> None:
    reasons = [each.reason for each in CLASSES]

    assert len(set(reasons)) == len(reasons)
    assert RegistryError.reason not in reasons


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_reason_is_a_valid_error_info_reason(kind: type[RegistryError]) -> None:
    assert "reason" in vars(kind)
    # The format of google.rpc.ErrorInfo.reason.
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", kind.reason)
    assert len(kind.reason) <= 63


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_tree_of_the_module_docstring(kind: type[RegistryError]) -> None:
    assert re.search(rf"── {kind.__name__}\b", errors.__doc__ or "")


def test_every_error_has_an_outcome_and_a_test_row() -> None:
    assert OUTCOMES.keys() == set(CLASSES) == {type(error) for error, *_ in TABLE}


def test_every_outcome_has_a_grpc_code() -> None:
    assert {outcome.code for outcome in OUTCOMES.values()} <= set(grpc.StatusCode.__members__)


def test_invalid_request_contains_its_violations() -> None:
    with pytest.raises(ValueError, match="at least one violation"):
        InvalidRequest([])

    error = InvalidRequest([Violation("a", "is bad"), Violation("b", "is worse")])

    assert str(error) == "a: is bad; b: is worse"
    assert error.violations == (("a", "is bad"), ("b", "is worse"))


# Status.


@pytest.mark.parametrize(
    ("error", "code", "metadata", "delay"), TABLE, ids=[type(error).__name__ for error, *_ in TABLE]
)
def test_error_is_converted_to_a_status_with_details(
    error: RegistryError, code: grpc.StatusCode, metadata: dict[str, str], delay: float | None
) -> None:
    with capture_logs() as logs:
        status = status_of(error)

    assert code_of(status) is code
    assert status.message == str(error)
    assert detail(status, ErrorInfo) == ErrorInfo(reason=error.reason, domain="registry.ossa", metadata=metadata)
    retry = detail(status, RetryInfo)
    assert (retry.retry_delay.ToTimedelta().total_seconds() if retry else None) == delay
    assert (detail(status, BadRequest) is not None) is isinstance(error, InvalidRequest)
    assert len(status.details) == 1 + (delay is not None) + isinstance(error, InvalidRequest)
    assert logs == []  # errors of callers are not logged


def test_details_are_sent_in_the_standard_trailer() -> None:
    status = status_of(errors.ServiceNotFound("a"))

    assert DETAILS_KEY == "grpc-status-details-bin"
    assert trailers_of(status) == ((DETAILS_KEY, status.SerializeToString()),)


def test_status_contains_every_invalid_field_with_its_reason() -> None:
    violations = [Violation(f"service.tags[{i}]", f"is {i} too many") for i in range(20)]

    bad_request = detail(status_of(InvalidRequest(violations)), BadRequest)

    assert bad_request is not None
    assert [(each.field, each.description) for each in bad_request.field_violations] == violations


LONG_VIOLATIONS = {
    "tags": [Violation(f"service.metadata.tags[{i}]", f"{'x' * 64!r}... contains a comma") for i in range(100)],
    "capabilities": [Violation(f"service.capabilities[{i}].name", "is not " * 10) for i in range(100)],
    "names": [Violation(f"names[{i}]", "\N{SNOWMAN}" * 60 + " is not a name") for i in range(100)],
    "short": [Violation(f"types[{i}]", f"{i} is not an EventType") for i in range(100)],
}


@pytest.mark.parametrize("violations", LONG_VIOLATIONS.values(), ids=LONG_VIOLATIONS)
def test_hundred_invalid_fields_fit_into_the_trailer(violations: list[Violation]) -> None:
    status = status_of(InvalidRequest(violations))

    assert trailer_bytes(status) <= MAX_TRAILER_BYTES
    bad_request = detail(status, BadRequest)
    assert bad_request is not None
    assert [each.field for each in bad_request.field_violations] == [violation.field for violation in violations]
    # Descriptions are included until the space is used up.
    assert bad_request.field_violations[0].description == violations[0].description


def test_violations_with_very_long_names_are_truncated() -> None:
    violations = [Violation(f'service.metadata.labels["{i}{"k" * 900}"]', "is bad") for i in range(100)]

    status = status_of(InvalidRequest(violations))

    assert trailer_bytes(status) <= MAX_TRAILER_BYTES
    bad_request = detail(status, BadRequest)
    assert bad_request is not None
    *complete, last = bad_request.field_violations
    assert [each.field for each in complete] == [violation.field for violation in violations[: len(complete)]]
    assert complete
    assert (last.field, last.description) == ("...", "and more")


TEXTS = st.text(max_size=400) | st.integers(0, 400).map(lambda length: "\N{PARTY POPPER}" * length)


@given(st.lists(st.builds(Violation, TEXTS, TEXTS), min_size=1, max_size=100))
def test_any_violations_fit_into_the_trailer(violations: Sequence[Violation]) -> None:
    status = status_of(InvalidRequest(violations))

    assert trailer_bytes(status) <= MAX_TRAILER_BYTES
    assert Status.FromString(status.SerializeToString()) == status


@pytest.mark.parametrize(
    "error",
    [
        errors.ServiceNotFound(NAME),
        errors.ServiceExists(NAME),
        errors.RevisionMismatch(NAME, 2**63 - 1, 2**63 - 1),
        errors.InstanceSuperseded(NAME),
        errors.WriteConflict(NAME),
    ],
    ids=lambda error: type(error).__name__,
)
def test_error_with_the_longest_name_fits_into_the_trailer(error: RegistryError) -> None:
    status = status_of(error)

    assert trailer_bytes(status) <= MAX_TRAILER_BYTES
    assert NAME in status.message


# Unexpected errors.


class Unlisted(RegistryError):
    reason = "UNLISTED"


class Inherited(errors.ServiceNotFound):
    """Not in the table of codes, although its base class is."""


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
def test_unexpected_error_is_logged_but_hidden_from_the_client(error: Exception) -> None:
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
