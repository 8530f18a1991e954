"""What a probe finds, and the words for what went wrong on the way.

The texts end up in ``Health.error``, which every reader of the registry sees: plain, short, the same for the same
fault (a text that varies would be a change each time), and nothing of the inside of this program.
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
    """It succeeded, but was slow, or the service says of itself that it is degraded."""
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    """The registry could not ask; that says nothing about the service."""


class Outcome(NamedTuple):
    """The result of one probe."""

    kind: OutcomeKind
    response_time: float
    """Seconds from the beginning, name resolution included, to the end."""
    error: str = ""
    """Why it is not OK, in plain words."""
    details: Struct | None = None
    """What the service told about itself; valid as ``Health.details``."""


class Answer(NamedTuple):
    """What a probe that succeeded found."""

    degraded: str = ""
    """Why the service is degraded, as far as its answer tells."""
    details: Struct | None = None


class ProbeFailed(Exception):
    """A probe did not succeed; ``text`` says why in plain words."""

    def __init__(self, text: str, details: Struct | None = None) -> None:
        self.text = text
        self.details = details
        super().__init__(text)


CLOSED_WITHOUT_ANSWER: Final = "closed the connection without an answer"
HOST_UNREACHABLE: Final = "host unreachable"
NETWORK_UNREACHABLE: Final = "network unreachable"
REFUSED: Final = "connection refused"
RESET: Final = "connection reset"
FAILED: Final = "connection failed"
NO_LOCAL_ADDRESS: Final = "the registry has no local address or port to connect from"
TOO_MANY_FILES: Final = "the registry has too many open files"
BROKEN: Final = "the probe failed within the registry"
TLS_FAILED: Final = "TLS: handshake failed"
TLS_NOT_SPOKEN: Final = "TLS: the server does not speak TLS"
TLS_OTHER_HOST: Final = "TLS: certificate is not valid for this host name"
TLS_EXPIRED: Final = "TLS: certificate has expired"
TLS_NOT_YET_VALID: Final = "TLS: certificate is not valid yet"
TLS_NOT_TRUSTED: Final = "TLS: certificate is not trusted"
TLS_SELF_SIGNED: Final = "TLS: certificate is not trusted (self-signed certificate)"
TLS_SELF_SIGNED_CHAIN: Final = "TLS: certificate is not trusted (self-signed certificate in its chain)"
TLS_UNKNOWN_ISSUER: Final = "TLS: certificate is not trusted (unknown issuer)"

_BY_ERRNO: Final[Mapping[int | None, str]] = {
    errno.ECONNREFUSED: REFUSED,
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
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
LOST: Final = "the registry lost the answer to its probe"
NOT_READY: Final = "the registry is not ready to probe"
OURS: Final = frozenset({NO_LOCAL_ADDRESS, TOO_MANY_FILES, BROKEN})
"""What is wrong with the registry and not with the service."""


def connection_error(error: OSError) -> str:
    """Says in plain words why a connection failed."""
    # Libraries raise some without a number.
    return _BY_ERRNO.get(error.errno, RESET if isinstance(error, ConnectionResetError) else FAILED)


def span(seconds: float) -> str:
    """A time for people: ``200 ms``, ``5 s``."""
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
