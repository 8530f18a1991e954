"""What a tracer is to those whose work it times; ``telemetry.otel`` is one. Without it nothing here costs anything."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Final, Protocol, TypeAlias

Attributes: TypeAlias = dict[str, str | int]
"""Names as in OpenTelemetry's semantic conventions."""

TRACE_ID: Final[ContextVar[str]] = ContextVar("trace_id", default="")
"""The trace that is recorded now, 32 hexadecimal digits; empty if none is."""


class Span(Protocol):
    """A piece of work that is timed."""

    def ended(self, attributes: Attributes, *, failed: bool) -> None:
        """Says what came of it, and whether that is an error of this side."""


class Tracer(Protocol):
    """Times pieces of work."""

    def call(
        self, name: str, attributes: Attributes, header: Callable[[str], str | None]
    ) -> AbstractContextManager[Span]:
        """Stands around the handling of a call.

        Args:
            name: What is called; of a few.
            attributes: What is known of it.
            header: Gives a header of the call by its lower-case name: it may belong to a trace.
        """

    def script(self, name: str) -> AbstractContextManager[None]:
        """Stands around a script that Redis runs for a call."""
