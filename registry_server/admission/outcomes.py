"""The table that maps errors to gRPC codes and HTTP statuses."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

import structlog

from registry_server import errors
from registry_server.instrumentation.request_context import REQUEST_CONTEXT


class Outcome(NamedTuple):
    """How a call ends that fails with an error."""

    code: str
    """Name of the gRPC status code."""
    status: HTTPStatus


INTERNAL: Final = Outcome("INTERNAL", HTTPStatus.INTERNAL_SERVER_ERROR)
"""Outcome of errors that are not in the table."""

OUTCOMES: Final[Mapping[type[errors.RegistryError], Outcome]] = {
    errors.InvalidRequest: Outcome("INVALID_ARGUMENT", HTTPStatus.BAD_REQUEST),
    errors.ServiceNotFound: Outcome("NOT_FOUND", HTTPStatus.NOT_FOUND),
    errors.ServiceExists: Outcome("ALREADY_EXISTS", HTTPStatus.CONFLICT),
    errors.RevisionMismatch: Outcome("ABORTED", HTTPStatus.PRECONDITION_FAILED),
    errors.InstanceSuperseded: Outcome("ABORTED", HTTPStatus.CONFLICT),
    errors.WriteConflict: Outcome("ABORTED", HTTPStatus.CONFLICT),
    errors.RevisionNotReached: Outcome("DEADLINE_EXCEEDED", HTTPStatus.GATEWAY_TIMEOUT),
    errors.CursorExpired: Outcome("OUT_OF_RANGE", HTTPStatus.GONE),
    errors.WatcherTooSlow: Outcome("RESOURCE_EXHAUSTED", HTTPStatus.TOO_MANY_REQUESTS),
    errors.StoreUnavailable: Outcome("UNAVAILABLE", HTTPStatus.SERVICE_UNAVAILABLE),
    errors.NotReplicated: Outcome("UNAVAILABLE", HTTPStatus.SERVICE_UNAVAILABLE),
    errors.ShuttingDown: Outcome("UNAVAILABLE", HTTPStatus.SERVICE_UNAVAILABLE),
    errors.Overloaded: Outcome("UNAVAILABLE", HTTPStatus.SERVICE_UNAVAILABLE),
    errors.ProbingDisabled: Outcome("UNIMPLEMENTED", HTTPStatus.NOT_IMPLEMENTED),
    errors.Unauthenticated: Outcome("UNAUTHENTICATED", HTTPStatus.UNAUTHORIZED),
    errors.IssuerUnavailable: Outcome("UNAVAILABLE", HTTPStatus.SERVICE_UNAVAILABLE),
    errors.PermissionDenied: Outcome("PERMISSION_DENIED", HTTPStatus.FORBIDDEN),
    errors.RateLimited: Outcome("RESOURCE_EXHAUSTED", HTTPStatus.TOO_MANY_REQUESTS),
    errors.LimitExceeded: Outcome("RESOURCE_EXHAUSTED", HTTPStatus.TOO_MANY_REQUESTS),
}
"""Outcome of each error that a call may return."""

log = structlog.get_logger(__name__)


def outcome_of(error: errors.RegistryError) -> Outcome:
    """Return the outcome of an error."""
    return OUTCOMES.get(type(error), INTERNAL)


def disclosed(error: Exception) -> errors.RegistryError:
    """Return the error that a client receives: the error itself, or an internal error without details.

    An error that is not in the table is a bug: it is logged in full, and the client learns nothing about it.
    """
    if isinstance(error, errors.RegistryError) and type(error) in OUTCOMES:
        return error
    context = REQUEST_CONTEXT.get()
    log.error("unexpected error", exc_info=error, **({"request_id": context.request_id} if context else {}))
    return errors.RegistryError("internal error; see the server's log")
