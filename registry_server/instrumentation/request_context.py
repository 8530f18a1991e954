"""``RequestContext``: where a call comes from, for logs and the audit; nothing is read of it until somebody asks."""

import re
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from typing import Final, Literal, TypeAlias

from registry_server.instrumentation.tracing import TRACE_ID

Transport: TypeAlias = Literal["grpc", "http"]

REQUEST_ID_HEADER: Final = "x-request-id"
TRACE_HEADER: Final = "traceparent"
_PROCESS: Final = secrets.token_hex(6)
"""Begins the ids that this process makes; a number follows."""
_NUMBERS: Final = count(1)
# What a log, a shell and JSON take as it stands; anything else a client sends as its id is replaced by one of ours.
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header; a version after 00 may have more behind it.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_LONGEST_TRACEPARENT: Final = 512


class RequestContext:
    """Where one call comes from.

    Nothing of what a client sends is taken over unless it is of a known form, so all of it can stand in a log.
    """

    # Not functools.cached_property: on Python 3.11 it takes a lock, 1 µs each time that a value is made.
    __slots__ = ("_header", "_peer", "_request_id", "_trace_id", "transport")

    def __init__(self, transport: Transport, header: Callable[[str], str | None], peer: Callable[[], str]) -> None:
        """Keeps where to look.

        Args:
            transport: How it came.
            header: Gives a header of the call by its lower-case name.
            peer: Gives the address that the connection comes from.
        """
        self.transport = transport
        self._header = header
        self._peer = peer
        self._request_id = ""
        self._trace_id: str | None = None

    @property
    def request_id(self) -> str:
        """The client's name for the call if it gave one of 1 to 128 harmless characters, else one of ours."""
        if not self._request_id:
            given = self._header(REQUEST_ID_HEADER)
            proper = given and _REQUEST_ID.fullmatch(given)
            self._request_id = given if given and proper else f"{_PROCESS}-{next(_NUMBERS):x}"
        return self._request_id

    @property
    def trace_id(self) -> str:
        """The W3C trace that the call belongs to, 32 hexadecimal digits; empty if there is none."""
        if self._trace_id is None:
            self._trace_id = TRACE_ID.get() or trace_id_of(self._header(TRACE_HEADER))
        return self._trace_id

    @property
    def peer(self) -> str:
        """Address that the connection comes from."""
        return self._peer()

    def fields(self) -> dict[str, str]:
        """What a line of a log says of it."""
        fields = {"transport": self.transport, "peer": self.peer, "request_id": self.request_id}
        return fields | {"trace_id": self.trace_id} if self.trace_id else fields


REQUEST_CONTEXT: Final[ContextVar[RequestContext | None]] = ContextVar("origin", default=None)
"""The call that is handled now; ``None`` for what the registry does by itself or an embedder asks for."""


def trace_id_of(traceparent: str | None) -> str:
    """Reads the trace of a ``traceparent``; empty if there is none or it is malformed."""
    if not traceparent or len(traceparent) > _LONGEST_TRACEPARENT:
        return ""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[2] and traceparent.startswith("00")):
        return ""
    return match[1]
