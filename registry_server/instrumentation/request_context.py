"""``RequestContext``: where a call comes from, for logs and the audit. Its values are computed on first use."""

import re
import secrets
from abc import ABC, abstractmethod
from contextvars import ContextVar
from itertools import count
from typing import ClassVar, Final, Literal

from registry_server.instrumentation.tracing import TRACE_ID

REQUEST_ID_HEADER: Final = "x-request-id"
TRACE_HEADER: Final = "traceparent"
# A generated request id is this prefix of the process and a number.
_PROCESS_PREFIX: Final = secrets.token_hex(6)
_NUMBERS: Final = count(1)
# Characters that need no escaping in a log, a shell or JSON. Any other id is replaced by a generated one.
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header; versions after 00 may append further fields.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_MAX_TRACEPARENT_LENGTH: Final = 512


class RequestContext(ABC):
    """Transport, peer, request id and trace of one call; each transport has a subclass.

    Values that a client sends are used only if they have a known format, so all of them are safe to log.
    """

    transport: ClassVar[Literal["grpc", "http"]]

    # Not functools.cached_property: on Python 3.11 it takes a lock, 1 µs for each value that is computed.
    _request_id: str = ""
    _trace_id: str | None = None

    @abstractmethod
    def header(self, name: str) -> str | None:
        """Return a header of the call by its lower-case name."""

    @property
    @abstractmethod
    def peer(self) -> str:
        """Remote address of the connection."""

    @property
    def request_id(self) -> str:
        """The client's ``x-request-id`` if it has 1 to 128 safe characters, otherwise a generated id."""
        if not self._request_id:
            sent = self.header(REQUEST_ID_HEADER)
            valid = sent and _REQUEST_ID.fullmatch(sent)
            self._request_id = sent if sent and valid else f"{_PROCESS_PREFIX}-{next(_NUMBERS):x}"
        return self._request_id

    @property
    def trace_id(self) -> str:
        """The W3C trace id of the call, 32 hexadecimal digits; empty if the call belongs to no trace."""
        if self._trace_id is None:
            self._trace_id = TRACE_ID.get() or parse_trace_id(self.header(TRACE_HEADER))
        return self._trace_id

    def log_fields(self) -> dict[str, str]:
        """Return the fields for a log line about the call."""
        fields = {"transport": self.transport, "peer": self.peer, "request_id": self.request_id}
        return fields | {"trace_id": self.trace_id} if self.trace_id else fields


REQUEST_CONTEXT: Final[ContextVar[RequestContext | None]] = ContextVar("request_context", default=None)
"""The call that is being handled; ``None`` for background work and for calls of an embedding program."""


def parse_trace_id(traceparent: str | None) -> str:
    """Return the trace id of a ``traceparent`` header, or an empty string if it is absent or malformed."""
    if not traceparent or len(traceparent) > _MAX_TRACEPARENT_LENGTH:
        return ""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[2] and traceparent.startswith("00")):
        return ""
    return match[1]
