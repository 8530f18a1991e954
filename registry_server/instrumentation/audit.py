"""``Audit``: one log line for each change and for each change that was refused, with the identity that requested it."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final, Literal, TypeAlias

from registry_server.errors import RegistryError
from registry_server.instrumentation.request_context import REQUEST_CONTEXT

LOGGER: Final = "audit"
FIELDS: Final = (
    *("operation", "service", "outcome", "identity", "revision_before", "revision_after"),
    *("transport", "peer", "request_id", "trace_id"),
)
"""Attributes of the log records. Those from ``transport`` on are present only if a call made the change."""
ANONYMOUS: Final = "anonymous"
REGISTRY: Final = "registry"
"""Identity of changes that no call requested, such as expired leases."""

Operation: TypeAlias = Literal[
    "register", "update", "unregister", "report_health", "set_maintenance", "cleanup", "expire"
]

# An invalid name may have any length.
_MAX_NAME_LENGTH: Final = 256

_AT_ONCE: Final = nullcontext()

BATCH_LOG_LINES: Final[ContextVar[bool]] = ContextVar("batch_log_lines", default=False)
"""Whether a log line may wait for the other lines of this turn of the event loop."""


@contextmanager
def batch_log_lines() -> Iterator[None]:
    """Write the log lines of a block, and of tasks created in it, in batches.

    Use it only where the caller is answered after the block, so that each change is logged before it is answered.
    """
    token = BATCH_LOG_LINES.set(True)
    try:
        yield
    finally:
        BATCH_LOG_LINES.reset(token)


class AuditEntry:
    """A change in progress; the code that makes the change sets the revisions."""

    __slots__ = ("after", "before")

    def __init__(self) -> None:
        self.before: int | None = None
        """Revision of the service before the change; ``None`` if there was none or it is not known yet."""
        self.after: int | None = None
        """Revision of the service after the change; ``None`` if it was removed."""


class Audit:
    """Writes the audit log to the logger ``audit``; the logging configuration decides where the lines go."""

    def __init__(self, *, enabled: bool = True, identity: Callable[[], str] | None = None) -> None:
        """Initialise the audit.

        Args:
            enabled: Whether lines are written.
            identity: Returns the identity of the current call; by default every call is anonymous.
        """
        self._enabled = enabled
        self._identity = identity or (lambda: ANONYMOUS)
        self._logger = logging.getLogger(LOGGER)

    @contextmanager
    def record_change(self, operation: Operation, name: str, *, batch: bool = False) -> Iterator[AuditEntry]:
        """Write a line if the block commits a change or fails; write none if the revision stays the same.

        Args:
            operation: Kind of change.
            name: Name of the service, as the client sent it.
            batch: Write the line of a committed change with the others of this turn of the event loop. The caller then
                leaves the turn before it answers, so that each change is logged before it is answered.
        """
        entry = AuditEntry()
        try:
            yield entry
        except asyncio.CancelledError:  # the change may have been committed, but the outcome is not known here
            self._write_line(operation, name, "CANCELLED", entry)
            raise
        except Exception as error:
            outcome = error.reason if isinstance(error, RegistryError) else RegistryError.reason
            self._write_line(operation, name, outcome, entry)
            raise
        if entry.before != entry.after:
            with batch_log_lines() if batch else _AT_ONCE:
                self._write_line(operation, name, "ok", entry)

    def record_removals(self, operation: Operation, names: Sequence[str], *, by: str | None = None) -> None:
        """Write a line for each service that was removed because its lease had expired.

        Args:
            operation: What triggered the removal.
            names: Names of the services.
            by: Identity to record; by default that of the current call.
        """
        for name in names:
            self._write_line(operation, name, "ok", AuditEntry(), by)

    def _write_line(
        self, operation: Operation, name: str, outcome: str, entry: AuditEntry, by: str | None = None
    ) -> None:
        if not self._enabled or not self._logger.isEnabledFor(logging.INFO):
            return
        context = REQUEST_CONTEXT.get() if by is None else None
        # Created here because ``Logger.info`` would inspect the stack for the caller, and every change writes a line.
        # ``Logger.handle`` ignores the log level, so the audit is complete at every level.
        line = logging.LogRecord(LOGGER, logging.INFO, __file__, 0, "change", None, None)
        line.__dict__.update(
            operation=operation,
            service=name[:_MAX_NAME_LENGTH],
            outcome=outcome,
            identity=by or self._identity(),
            revision_before=entry.before,
            revision_after=entry.after,
            **(context.log_fields() if context else {}),
        )
        self._logger.handle(line)
