"""The tracer interface; ``telemetry.otel`` implements it. Without a tracer, tracing has no cost."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final, Protocol, TypeAlias

Attributes: TypeAlias = dict[str, str | int]
"""Names follow OpenTelemetry's semantic conventions."""

TRACE_ID: Final[ContextVar[str]] = ContextVar("trace_id", default="")
"""The trace that is being recorded, 32 hexadecimal digits; empty if there is none."""


class Span(Protocol):
    """A timed operation."""

    def set_result(self, attributes: Attributes, *, failed: bool) -> None:
        """Record the outcome; ``failed`` means an error of the server, not of the client."""


class Tracer(Protocol):
    """Records spans."""

    def trace_call(
        self, name: str, attributes: Attributes, header: Callable[[str], str | None]
    ) -> AbstractContextManager[Span]:
        """Return a context manager that records the handling of a call as a span.

        Args:
            name: Operation that was called. Must have few distinct values.
            attributes: Attributes that are known before the call is handled.
            header: Returns a header of the call by its lower-case name; the trace context is read from it.
        """

    def trace_script(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that records a Redis script that runs for a call as a span."""
