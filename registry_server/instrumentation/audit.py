"""``Audit``: who changed what, one line for each change and for each that was refused."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal, TypeAlias

from registry_server.errors import RegistryError
from registry_server.instrumentation.request_context import REQUEST_CONTEXT

LOGGER: Final = "audit"
FIELDS: Final = (
    *("operation", "service", "outcome", "identity", "revision_before", "revision_after"),
    *("transport", "peer", "request_id", "trace_id"),
)
"""Attributes of its log records; those from ``transport`` on only where a call made the change."""
ANONYMOUS: Final = "anonymous"
REGISTRY: Final = "registry"
"""Who changes what no call asked for."""

Operation: TypeAlias = Literal["register", "update", "unregister", "report_health", "cleanup", "expire"]

_LONGEST_NAME: Final = 256
"""Characters: a name that is refused may have any length."""


TOGETHER: Final[ContextVar[bool]] = ContextVar("audit_together", default=False)
"""Whether lines may wait for others of the same turn of the event loop: what was done is answered later."""


@contextmanager
def together() -> Iterator[None]:
    """Has the lines of a block, and of the tasks that are made in it, written together."""
    token = TOGETHER.set(True)
    try:
        yield
    finally:
        TOGETHER.reset(token)


class Entry:
    """A change that is under way: whoever makes it says what it began with and what came of it."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: int | None = None
        """Revision of the service before; ``None`` if there was none, or nobody has looked yet."""
        self.after: int | None = None
        """Its revision afterwards; ``None`` if it is gone."""


class Audit:
    """Writes the audit, by the logger ``audit``; where its lines go is a matter of the logging."""

    def __init__(self, *, enabled: bool = True, identity: Callable[[], str] | None = None) -> None:
        """Makes it.

        Args:
            enabled: Whether there is an audit.
            identity: Tells who makes the call that is handled now; by default nobody is known.
        """
        self._enabled = enabled
        self._identity = identity or (lambda: ANONYMOUS)
        self._logger = logging.getLogger(LOGGER)

    @contextmanager
    def change(self, operation: Operation, name: str) -> Iterator[Entry]:
        """Stands around a change and writes its line once it is committed or refused; none if nothing changes.

        Args:
            operation: What is done.
            name: To which service; as the client gave it.
        """
        entry = Entry()
        try:
            yield entry
        except RegistryError as error:
            self._write(operation, name, error.reason, entry)
            raise
        except asyncio.CancelledError:  # it may have been committed: nobody waited to hear
            self._write(operation, name, "CANCELLED", entry)
            raise
        except Exception:
            self._write(operation, name, RegistryError.reason, entry)
            raise
        if entry.before != entry.after:
            self._write(operation, name, "ok", entry)

    def removed(self, operation: Operation, names: Sequence[str], *, by: str | None = None) -> None:
        """Writes a line for each service that was removed since its lease had run out.

        Args:
            operation: On what occasion.
            names: The services.
            by: Who removed them; by default who makes the call.
        """
        for name in names:
            self._write(operation, name, "ok", Entry(), by)

    def _write(self, operation: Operation, name: str, outcome: str, entry: Entry, by: str | None = None) -> None:
        if not self._enabled or not self._logger.isEnabledFor(logging.INFO):
            return
        origin = REQUEST_CONTEXT.get() if by is None else None
        # Made here and not by the logger, which would look for the caller, and every change pays for its line. Whatever
        # the least level of the log is, the audit is complete.
        line = logging.LogRecord(LOGGER, logging.INFO, __file__, 0, "change", None, None)
        line.__dict__.update(
            operation=operation,
            service=name[:_LONGEST_NAME],
            outcome=outcome,
            identity=by or self._identity(),
            revision_before=entry.before,
            revision_after=entry.after,
            **(origin.fields() if origin else {}),
        )
        self._logger.handle(line)
