"""``RpcMethod``: counts and logs the calls of one RPC."""

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

_SERVER_ERRORS: Final = frozenset({"INTERNAL", "UNAVAILABLE", "UNKNOWN"})
"""Codes caused by this server rather than by its client; logged as warnings."""
_NO_ERROR: Final = frozenset({"OK", "CANCELLED"})

log = structlog.get_logger("registry_server.rpc")


class RpcMethod:
    """Counters and log level of one RPC."""

    def __init__(self, name: str, settings: LogSettings, *, streams: bool) -> None:
        self.name = name
        self.streams = streams
        """Whether calls are streams, whose duration their client decides."""
        self.calls = CallCounters()
        self.in_flight = 0
        """Number of open streams."""
        self._logs_errors = settings.requests != "off"
        self.logs_all = settings.requests == "all"

    def call_ended(
        self, code: str, started: float, context: Context, request_context: RequestContext | None = None
    ) -> None:
        """Count a call that has ended, and log it if configured.

        Args:
            code: Name of its status.
            started: Start time, from ``time.perf_counter``.
            context: The call.
            request_context: Its request context, if one was already created.
        """
        seconds = time.perf_counter() - started
        self.calls.count(code, seconds)
        if self.logs_all or (self._logs_errors and code not in _NO_ERROR):
            log.log(
                logging.WARNING if code in _SERVER_ERRORS else logging.INFO,
                "request",
                method=self.name,
                code=code,
                milliseconds=round(seconds * 1000, 3),
                **(request_context or request_context_of(context)).log_fields(),
                **caller_fields(),
            )


def request_context_of(context: Context) -> RequestContext:
    """Return the request context of a call."""
    return RequestContext("grpc", partial(header_of, context), context.peer)


def header_of(context: Context, name: str) -> str | None:
    """Return the first text value of a metadata key."""
    metadata: Any = context.invocation_metadata()
    value = next((value for key, value in metadata or () if key == name), None)
    return value if isinstance(value, str) else None
