"""What the registry, or its absence, says, as one line and an exit code."""

import re
from typing import Final

from registry_cli.exits import Exit, Failure
from registry_cli.names import document_name
from registry_client import (
    CursorExpired,
    DeadlineExceeded,
    InvalidRequest,
    PermissionDenied,
    RegistryError,
    RegistryUnavailable,
    RevisionMismatch,
    ServiceExists,
    ServiceNotFound,
    ShuttingDown,
    StoreUnavailable,
    Unauthenticated,
    WriteConflict,
)

_CODES: Final[tuple[tuple[type[RegistryError], Exit], ...]] = (
    (InvalidRequest, Exit.USAGE),
    (ServiceNotFound, Exit.NOT_FOUND),
    (CursorExpired, Exit.NOT_FOUND),
    (RegistryUnavailable, Exit.UNAVAILABLE),
    (DeadlineExceeded, Exit.UNAVAILABLE),
    (ServiceExists, Exit.CONFLICT),
    (RevisionMismatch, Exit.CONFLICT),
    (WriteConflict, Exit.CONFLICT),
    (Unauthenticated, Exit.DENIED),
    (PermissionDenied, Exit.DENIED),
)

# What gRPC says of a connection is long and of many kinds; these are the ones that people meet.
_CONNECTIONS: Final = (
    ("connection refused", "connection refused; is it running?"),
    (
        "domain name not found|dns resolution failed|could not contact dns|name or service not known",
        "the host name is not known",
    ),
    ("certificate_verify_failed|certificate verify failed", "its certificate is not trusted; see --ca-file"),
    ("hostname verification", "its certificate is that of another host; see --server-name"),
    ("wrong_version_number|wrong version number", "the port there does not speak TLS"),
    ("ssl|tls|handshak", "the TLS handshake failed"),
    ("http1|http/1|http2 settings|http/2|goaway|http2 error", "the program there does not speak gRPC"),
    ("timed out|timeout", "no answer"),
    ("network is unreachable|no route to host|network unreachable|host unreachable", "the network is unreachable"),
    (
        "socket closed|connection reset|broken pipe|end of tcp stream|recvmsg|eof",
        "the connection was closed; does it ask for TLS (--tls)?",
    ),
)


def exit_code(error: RegistryError) -> Exit:
    """The exit code of an error."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILED)


def failure(error: RegistryError, target: str) -> Failure:
    """What to tell of an error.

    Args:
        error: What a call raised.
        target: Whom it was made to, for errors which are about that.
    """
    return Failure(explained(error, target), exit_code(error))


def explained(error: RegistryError, target: str) -> str:
    """An error in plain words: one line, or one for each bad field."""
    text = str(error)
    match error:
        case InvalidRequest() if error.violations:
            text = "\n".join(f"{document_name(field)}: {what}" for field, what in error.violations)
        case StoreUnavailable() | ShuttingDown():
            text = f"the registry at {target} cannot do that now: {error}"
        case RegistryUnavailable():
            text = f"cannot reach the registry at {target}: {_connection(text)}"
        case DeadlineExceeded() if not error.reason:
            text = f"no answer from the registry at {target} in time; see --timeout"
        case CursorExpired():
            text = "the registry no longer knows what happened after this cursor; begin anew with --snapshot"
        case RevisionMismatch():
            text += "; read it again, then decide again"
        case Unauthenticated() if error.reason:
            text += "; see --token-file"
        case _ if error.code.name == "UNIMPLEMENTED" and not error.reason:
            text = f"the program at {target} speaks gRPC but is no ossa-registry, or one of another version"
        case _:
            pass
    return text


def _connection(text: str) -> str:
    lower = text.lower()
    return next((words for pattern, words in _CONNECTIONS if re.search(pattern, lower)), text)
