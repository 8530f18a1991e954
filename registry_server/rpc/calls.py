"""``Method``: what is counted and logged of the calls of one RPC."""

import logging
import time
from functools import partial
from typing import Any, Final

import structlog

from registry_server.config import LogSettings
from registry_server.instrumentation.counters import CallCounters
from registry_server.instrumentation.request_context import RequestContext
from registry_server.rpc.codec import Context
from registry_server.security.identity import caller_fields

_OURS: Final = frozenset({"INTERNAL", "UNAVAILABLE", "UNKNOWN"})
"""Codes that tell of this server and not of its client."""
_NO_ERROR: Final = frozenset({"OK", "CANCELLED"})

log = structlog.get_logger("registry_server.rpc")


class Method:
    """One RPC."""

    def __init__(self, name: str, settings: LogSettings, *, streams: bool) -> None:
        self.name = name
        self.streams = streams
        """Whether its calls last as long as their client likes."""
        self.calls = CallCounters()
        self.under_way = 0
        """Calls that have begun and not ended: for a stream, those who hold it open."""
        self._tells_errors = settings.requests != "off"
        self.tells_all = settings.requests == "all"

    def ended(self, code: str, began: float, context: Context, origin: RequestContext | None = None) -> None:
        """Counts a call that has ended, and logs it if it is to be told.

        Args:
            code: Name of its status.
            began: When it began, by ``time.perf_counter``.
            context: The call.
            origin: Where it comes from, if that is known already.
        """
        seconds = time.perf_counter() - began
        self.calls.count(code, seconds)
        if self.tells_all or (self._tells_errors and code not in _NO_ERROR):
            log.log(
                logging.WARNING if code in _OURS else logging.INFO,
                "request",
                method=self.name,
                code=code,
                milliseconds=round(seconds * 1000, 3),
                **(origin or origin_of(context)).fields(),
                **caller_fields(),
            )


def origin_of(context: Context) -> RequestContext:
    """Where a call comes from."""
    return RequestContext("grpc", partial(header_of, context), context.peer)


def header_of(context: Context, name: str) -> str | None:
    """The first value of a key of the metadata, if it is text."""
    metadata: Any = context.invocation_metadata()
    value = next((value for key, value in metadata or () if key == name), None)
    return value if isinstance(value, str) else None
