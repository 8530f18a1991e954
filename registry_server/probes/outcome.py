"""Outcomes of probes, and the texts for their failures.

Every client that may read a service sees these texts in ``Health.error``. They are short, identical for identical
faults (a text that varies would be a change each time), and reveal nothing about the registry's internals.
"""

import errno
from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from google.protobuf.struct_pb2 import Struct


class OutcomeKind(Enum):
    """How a probe ended."""

    OK = "ok"
    DEGRADED = "degraded"
    """The probe succeeded, but was slow, or the service reports that it is degraded."""
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    """The registry could not complete the probe, so the result does not count."""


class Outcome(NamedTuple):
    """The result of one probe."""

    kind: OutcomeKind
    response_time: float
    """Duration in seconds, including name resolution."""
    error: str = ""
    """Reason why the outcome is not OK, as human-readable text."""
    details: Struct | None = None
    """Details from the service's answer; valid as ``Health.details``."""


class Answer(NamedTuple):
    """The answer to a successful probe."""

    degraded: str = ""
    """Reason why the service is degraded, from its answer; empty if it is not degraded."""
    details: Struct | None = None


class ProbeFailed(Exception):
    """A probe failed; ``text`` is the human-readable reason."""

    def __init__(self, text: str, details: Struct | None = None) -> None:
        self.text = text
        self.details = details
        super().__init__(text)


CLOSED_WITHOUT_ANSWER: Final = "closed the connection without an answer"
HOST_UNREACHABLE: Final = "host unreachable"
NETWORK_UNREACHABLE: Final = "network unreachable"
CONNECTION_REFUSED: Final = "connection refused"
CONNECTION_RESET: Final = "connection reset"
CONNECTION_FAILED: Final = "connection failed"
NO_LOCAL_ADDRESS: Final = "the registry has no local address or port to connect from"
TOO_MANY_FILES: Final = "the registry has too many open files"
INTERNAL_FAILURE: Final = "the probe failed within the registry"
TLS_FAILED: Final = "TLS: handshake failed"
TLS_NOT_SUPPORTED: Final = "TLS: the server does not speak TLS"
TLS_OTHER_HOST: Final = "TLS: certificate is not valid for this host name"
TLS_EXPIRED: Final = "TLS: certificate has expired"
TLS_NOT_YET_VALID: Final = "TLS: certificate is not valid yet"
TLS_NOT_TRUSTED: Final = "TLS: certificate is not trusted"
TLS_SELF_SIGNED: Final = "TLS: certificate is not trusted (self-signed certificate)"
TLS_SELF_SIGNED_CHAIN: Final = "TLS: certificate is not trusted (self-signed certificate in its chain)"
TLS_UNKNOWN_ISSUER: Final = "TLS: certificate is not trusted (unknown issuer)"

_BY_ERRNO: Final[Mapping[int | None, str]] = {
    errno.ECONNREFUSED: CONNECTION_REFUSED,
    errno.ECONNRESET: CONNECTION_RESET,
    errno.EPIPE: CONNECTION_RESET,
    errno.ETIMEDOUT: "connection timed out",
    errno.EHOSTUNREACH: HOST_UNREACHABLE,
    errno.EHOSTDOWN: HOST_UNREACHABLE,
    errno.ENETUNREACH: NETWORK_UNREACHABLE,
    errno.ENETDOWN: NETWORK_UNREACHABLE,
    errno.EACCES: "connection not permitted by the registry's host",
    errno.EPERM: "connection not permitted by the registry's host",
    errno.EADDRNOTAVAIL: NO_LOCAL_ADDRESS,
    errno.EMFILE: TOO_MANY_FILES,
    errno.ENFILE: TOO_MANY_FILES,
}
LOST_ANSWER: Final = "the registry lost the answer to its probe"
NOT_READY: Final = "the registry is not ready to probe"
NO_FREE_SLOT: Final = "the registry has no free slot for this probe"
REGISTRY_FAILURES: Final = frozenset({NO_LOCAL_ADDRESS, TOO_MANY_FILES, INTERNAL_FAILURE, NO_FREE_SLOT})
"""Failures of the registry rather than of the service."""


def connection_error(error: OSError) -> str:
    """Return the human-readable reason why a connection failed."""
    # Libraries raise some errors without an errno.
    return _BY_ERRNO.get(
        error.errno, CONNECTION_RESET if isinstance(error, ConnectionResetError) else CONNECTION_FAILED
    )


def format_seconds(seconds: float) -> str:
    """Return a duration as human-readable text, such as ``200 ms`` or ``5 s``."""
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
