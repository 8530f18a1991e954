"""Conversion of SDK errors into one-line messages and exit codes."""

import re
from collections.abc import Mapping
from typing import Final

from ossa_common.json_shape import TEXT_FILTERS, json_path
from registry_cli.exits import Exit, Failure
from registry_client import (
    CursorExpired,
    DeadlineExceeded,
    InstanceSuperseded,
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

_EXIT_CODES: Final[Mapping[Exit, tuple[type[RegistryError], ...]]] = {
    Exit.USAGE: (InvalidRequest,),
    Exit.NOT_FOUND: (ServiceNotFound, CursorExpired),
    Exit.UNAVAILABLE: (RegistryUnavailable, DeadlineExceeded),
    Exit.CONFLICT: (ServiceExists, RevisionMismatch, InstanceSuperseded, WriteConflict),
    Exit.DENIED: (Unauthenticated, PermissionDenied),
}

_SERVICE: Final = re.compile(r"^services?(?:\[[0-9]+\])?\.")
_FLAGS: Final = {"tags": "--tag", "tag_match": "--all-tags", "labels": "--label"}

# gRPC's messages about connections are long and vary; these patterns cover the common causes.
_CONNECTION_FAILURES: Final = (
    ("http proxy returned response code", "the proxy refuses to connect"),
    ("connection refused", "connection refused; is it running?"),
    (
        "domain name not found|dns resolution failed|could not contact dns|name or service not known",
        "the host name cannot be resolved",
    ),
    ("certificate_verify_failed|certificate verify failed", "the server certificate is not trusted; see --ca-file"),
    ("hostname verification", "the server certificate is for another host name; see --server-name"),
    ("wrong_version_number|wrong version number", "the server does not use TLS"),
    ("ssl|tls|handshak", "the TLS handshake failed"),
    ("http1|http/1|http2 settings|http/2|goaway|http2 error", "the server does not speak gRPC"),
    ("timed out|timeout", "the connection timed out"),
    ("network is unreachable|no route to host|network unreachable|host unreachable", "the network is unreachable"),
    (
        "socket closed|connection reset|broken pipe|end of tcp stream|recvmsg|eof",
        "the connection was closed; does the server require TLS (--tls)?",
    ),
)


def failure_from_error(error: RegistryError, target: str) -> Failure:
    """Convert an error into a failure of the command.

    Args:
        error: The error that a call raised.
        target: The target of the call, for errors about the connection.
    """
    code = next((code for code, kinds in _EXIT_CODES.items() if isinstance(error, kinds)), Exit.FAILED)
    return Failure(error_text(error, target), code)


def error_text(error: RegistryError, target: str) -> str:
    """Return the message of an error: one line, or one line for each invalid field."""
    text = str(error)
    if "proxy" in error.metadata:
        target = f"{target} through the proxy {error.metadata['proxy']}"
    match error:
        case InvalidRequest() if error.violations:
            text = "\n".join(f"{field_name(field)}: {problem}" for field, problem in error.violations)
        case StoreUnavailable() | ShuttingDown():
            text = f"the registry at {target} is temporarily unavailable: {error}"
        case RegistryUnavailable():
            text = f"cannot reach the registry at {target}: {_connection_failure(text)}"
        case DeadlineExceeded() if not error.reason:
            text = f"the registry at {target} did not respond in time; see --timeout"
        case CursorExpired():
            text = "the cursor has expired; start again with --snapshot instead of --cursor"
        case RevisionMismatch():
            text += "; read it again before you retry"
        case Unauthenticated() if error.reason:
            text += "; see --token-file"
        case _ if error.code.name == "UNIMPLEMENTED" and not error.reason:
            text = f"the gRPC server at {target} is not an ossa-registry, or is of an incompatible version"
        case _:
            pass
    return text


def field_name(path: str) -> str:
    """Return the flag of a filter field, or the JSON and YAML path of any other field."""
    if not path.startswith("filter."):
        return json_path(_SERVICE.sub("", path))
    return filter_flag(path.removeprefix("filter.").partition("[")[0])


def filter_flag(field: str) -> str:
    """Return the flag of a field of ``ServiceFilter``."""
    return _FLAGS.get(field) or "--" + TEXT_FILTERS.get(field, field).replace("_", "-")


def _connection_failure(text: str) -> str:
    lower = text.lower()
    return next((message for pattern, message in _CONNECTION_FAILURES if re.search(pattern, lower)), text)
