"""Translation of errors from the wire, compared with the errors of the server; retry policy."""

import grpc
import pytest
from google.rpc.status_pb2 import Status

import registry_client
from ossa_common.violations import Violation
from registry_client import errors
from registry_client.errors import RegistryError, error_from_rpc, error_from_status
from registry_client.retry import Backoff, is_resumable, is_retryable
from registry_server import errors as server_errors
from registry_server.admission import OUTCOMES
from registry_server.rpc.status import status_of, trailers_of

SAMPLES: dict[type[server_errors.RegistryError], server_errors.RegistryError] = {
    server_errors.InvalidRequest: server_errors.InvalidRequest([Violation("name", "is empty")]),
    server_errors.ServiceNotFound: server_errors.ServiceNotFound("a"),
    server_errors.ServiceExists: server_errors.ServiceExists("a"),
    server_errors.RevisionMismatch: server_errors.RevisionMismatch("a", 1, 2),
    server_errors.InstanceSuperseded: server_errors.InstanceSuperseded("a"),
    server_errors.WriteConflict: server_errors.WriteConflict("a"),
    server_errors.RevisionNotReached: server_errors.RevisionNotReached(2, 1),
    server_errors.CursorExpired: server_errors.CursorExpired("too old"),
    server_errors.WatcherTooSlow: server_errors.WatcherTooSlow("3 events were buffered"),
    server_errors.StoreUnavailable: server_errors.StoreUnavailable(),
    server_errors.NotReplicated: server_errors.NotReplicated(7, 1, 2),
    server_errors.ShuttingDown: server_errors.ShuttingDown(),
    server_errors.Overloaded: server_errors.Overloaded("calls", 3, "too many calls are in flight"),
    server_errors.ProbingDisabled: server_errors.ProbingDisabled(),
    server_errors.Unauthenticated: server_errors.Unauthenticated(),
    server_errors.IssuerUnavailable: server_errors.IssuerUnavailable("corp"),
    server_errors.PermissionDenied: server_errors.PermissionDenied("not yours"),
    server_errors.RateLimited: server_errors.RateLimited(0.25),
    server_errors.LimitExceeded: server_errors.LimitExceeded("watches", 3, "too many watches"),
}


def client_error(
    code: grpc.StatusCode, message: str = "", trailers: tuple[tuple[str, bytes], ...] = ()
) -> RegistryError:
    metadata = grpc.aio.Metadata(*trailers)
    return error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=message))


def test_every_server_error_has_a_sample() -> None:
    assert SAMPLES.keys() == OUTCOMES.keys()


@pytest.mark.parametrize("kind", SAMPLES, ids=lambda kind: kind.__name__)
def test_server_error_arrives_as_the_class_of_the_same_name(kind: type[server_errors.RegistryError]) -> None:
    sample = SAMPLES[kind]
    status, code = status_of(sample), grpc.StatusCode[OUTCOMES[kind].code]
    for error in (client_error(code, str(sample), trailers_of(status)), error_from_status(status)):
        assert type(error).__name__ == kind.__name__
        assert (str(error), error.reason, error.code) == (str(sample), sample.reason, code)
        assert error.metadata == sample.metadata
        assert error.retry_after == getattr(sample, "retry_after", 0)


def test_violations_are_preserved() -> None:
    error = error_from_status(status_of(SAMPLES[server_errors.InvalidRequest]))
    assert isinstance(error, errors.InvalidRequest)
    assert error.violations == (Violation("name", "is empty"),)


def test_unexpected_server_exception_arrives_as_internal_error() -> None:
    status = status_of(ZeroDivisionError())
    assert type(client_error(grpc.StatusCode.INTERNAL, status.message, trailers_of(status))) is errors.InternalError


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.RegistryUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitExceeded),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.UNIMPLEMENTED, errors.RegistryError),
        # A connection that breaks during a call.
        (grpc.StatusCode.INTERNAL, errors.RegistryUnavailable),
        (grpc.StatusCode.UNKNOWN, errors.RegistryUnavailable),
        (grpc.StatusCode.CANCELLED, errors.RegistryUnavailable),
    ],
)
def test_errors_of_grpc_itself_are_mapped_by_code(code: grpc.StatusCode, kind: type[RegistryError]) -> None:
    error = client_error(code)
    assert type(error) is kind
    assert (error.code, error.reason, str(error)) == (code, "", code.name)


def test_malformed_error_details_are_ignored() -> None:
    error = client_error(grpc.StatusCode.NOT_FOUND, "gone", (("grpc-status-details-bin", b"\xff\xff"),))
    assert type(error) is errors.ServiceNotFound
    assert type(error_from_status(Status(code=99))) is errors.RegistryUnavailable


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
        (errors.InstanceSuperseded, False, False, False),
        (errors.RevisionMismatch, False, False, False),
        (errors.InvalidRequest, False, False, False),
        (errors.PermissionDenied, False, False, False),
        (errors.InternalError, False, False, False),
    ],
)
def test_retry_policy_of_each_error(
    *, kind: type[RegistryError], repeatable: bool, not_repeatable: bool, resumable: bool
) -> None:
    error = kind("")
    assert is_retryable(error, repeatable=True) is repeatable
    assert is_retryable(error, repeatable=False) is not_repeatable
    assert is_resumable(error) is resumable


def test_backoff_grows_to_its_limit_has_jitter_and_honours_retry_after() -> None:
    backoff = Backoff(first=0.1, most=2.0)
    for failures, upper_bound in ((1, 0.1), (2, 0.2), (5, 1.6), (6, 2.0), (10_000, 2.0)):
        delays = [backoff.delay(failures) for _ in range(200)]
        assert 0 <= min(delays) < 0.5 * upper_bound < max(delays) <= upper_bound
    assert backoff.delay(1, at_least=3) >= 3
