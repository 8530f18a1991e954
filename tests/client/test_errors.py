"""The one table from the wire to errors, held against the server's."""

import grpc
import pytest
from google.rpc.status_pb2 import Status

import registry_client
from registry_client import errors
from registry_client.errors import RegistryError, error_of_call, error_of_status
from registry_client.retry import Backoff, may_repeat, may_resume
from registry_server import errors as of_server
from registry_server.rpc.status import CODES, status_of, trailers_of

SAMPLES: dict[type[of_server.RegistryError], of_server.RegistryError] = {
    of_server.InvalidRequest: of_server.InvalidRequest([of_server.Violation("name", "is empty")]),
    of_server.ServiceNotFound: of_server.ServiceNotFound("a"),
    of_server.ServiceExists: of_server.ServiceExists("a"),
    of_server.RevisionMismatch: of_server.RevisionMismatch("a", 1, 2),
    of_server.WriteConflict: of_server.WriteConflict("a"),
    of_server.RevisionNotReached: of_server.RevisionNotReached(2, 1),
    of_server.CursorExpired: of_server.CursorExpired("too old"),
    of_server.WatcherTooSlow: of_server.WatcherTooSlow(3),
    of_server.StoreUnavailable: of_server.StoreUnavailable(),
    of_server.NotReplicated: of_server.NotReplicated(7, 1, 2),
    of_server.ShuttingDown: of_server.ShuttingDown(),
    of_server.Overloaded: of_server.Overloaded("calls", 3, "too much is under way"),
    of_server.ProbingDisabled: of_server.ProbingDisabled(),
    of_server.Unauthenticated: of_server.Unauthenticated(),
    of_server.IssuerUnavailable: of_server.IssuerUnavailable("corp"),
    of_server.PermissionDenied: of_server.PermissionDenied("not yours"),
    of_server.RateLimited: of_server.RateLimited(0.25),
    of_server.LimitExceeded: of_server.LimitExceeded("watches", 3, "too many watches"),
}


def raised(code: grpc.StatusCode, message: str = "", trailers: tuple[tuple[str, bytes], ...] = ()) -> RegistryError:
    metadata = grpc.aio.Metadata(*trailers)
    return error_of_call(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=message))


def test_there_is_a_sample_of_every_error_of_the_server() -> None:
    assert SAMPLES.keys() == CODES.keys()


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_an_error_of_the_server_arrives_as_the_class_of_the_same_name(kind: type[of_server.RegistryError]) -> None:
    sample = SAMPLES[kind]
    status = status_of(sample)
    for error in (raised(CODES[kind], str(sample), trailers_of(status)), error_of_status(status)):
        assert type(error).__name__ == kind.__name__
        assert (str(error), error.reason, error.code) == (str(sample), sample.reason, CODES[kind])
        assert error.metadata == sample.metadata
        assert error.retry_after == getattr(sample, "retry_after", 0)


def test_violations_arrive() -> None:
    error = error_of_status(status_of(SAMPLES[of_server.InvalidRequest]))
    assert isinstance(error, errors.InvalidRequest)
    assert error.violations == (errors.Violation("name", "is empty"),)


def test_a_bug_of_the_server_is_an_internal_error() -> None:
    status = status_of(ZeroDivisionError())
    assert type(raised(grpc.StatusCode.INTERNAL, status.message, trailers_of(status))) is errors.InternalError


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.RegistryUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitExceeded),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.UNIMPLEMENTED, errors.RegistryError),
        # A connection that breaks under a call.
        (grpc.StatusCode.INTERNAL, errors.RegistryUnavailable),
        (grpc.StatusCode.UNKNOWN, errors.RegistryUnavailable),
        (grpc.StatusCode.CANCELLED, errors.RegistryUnavailable),
    ],
)
def test_what_grpc_says_by_itself_is_told_by_its_code(code: grpc.StatusCode, kind: type[RegistryError]) -> None:
    error = raised(code)
    assert type(error) is kind
    assert (error.code, error.reason, str(error)) == (code, "", code.name)


def test_details_that_are_not_ours_do_no_harm() -> None:
    error = raised(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff"),))
    assert type(error) is errors.ServiceNotFound
    assert type(error_of_status(Status(code=99))) is errors.RegistryUnavailable


def test_every_error_is_exported() -> None:
    def tree(kind: type[RegistryError]) -> set[str]:
        return {kind.__name__}.union(*map(tree, kind.__subclasses__()))

    assert tree(RegistryError) <= set(registry_client.__all__)


@pytest.mark.parametrize(
    ("kind", "repeatable", "not_repeatable", "resumable"),
    [
        (errors.RegistryUnavailable, True, False, True),
        (errors.StoreUnavailable, True, False, True),
        (errors.NotReplicated, True, False, True),
        (errors.ShuttingDown, True, False, True),
        (errors.DeadlineExceeded, True, False, True),
        (errors.RevisionNotReached, True, False, True),
        (errors.WriteConflict, True, True, False),
        (errors.WatcherTooSlow, False, False, True),
        (errors.CursorExpired, False, False, False),
        (errors.RevisionMismatch, False, False, False),
        (errors.InvalidRequest, False, False, False),
        (errors.PermissionDenied, False, False, False),
        (errors.InternalError, False, False, False),
    ],
)
def test_only_what_is_safe_is_made_again(
    *, kind: type[RegistryError], repeatable: bool, not_repeatable: bool, resumable: bool
) -> None:
    error = kind("")
    assert may_repeat(error, repeatable=True) is repeatable
    assert may_repeat(error, repeatable=False) is not_repeatable
    assert may_resume(error) is resumable


def test_waiting_grows_to_its_bound_is_spread_and_honours_the_registry() -> None:
    backoff = Backoff(first=0.1, most=2.0)
    for failures, longest in ((1, 0.1), (2, 0.2), (5, 1.6), (6, 2.0), (10_000, 2.0)):
        delays = [backoff.delay(failures) for _ in range(200)]
        assert 0 <= min(delays) < 0.5 * longest < max(delays) <= longest
    assert backoff.delay(1, at_least=3) >= 3
