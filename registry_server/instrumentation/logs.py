"""Log configuration: structlog and the standard ``logging`` share one renderer, which writes to standard error."""

import asyncio
import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any, Final

import orjson
import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import ExceptionRenderer, JSONRenderer, StackInfoRenderer, TimeStamper
from structlog.stdlib import (
    ExtraAdder,
    LoggerFactory,
    ProcessorFormatter,
    add_log_level,
    add_logger_name,
    filter_by_level,
)
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from registry_server.errors import ConfigurationError
from registry_server.instrumentation.audit import BATCH_LOG_LINES
from registry_server.instrumentation.audit import FIELDS as AUDIT_FIELDS
from registry_server.instrumentation.audit import LOGGER as AUDIT

_FIRST_FIELDS: Final = ("timestamp", "level", "logger", "event")
# Includes the characters that some terminals and viewers treat as line breaks.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure_library_logging() -> None:
    """Send the registry's logs through ``logging``, for programs that embed the registry.

    Without this, structlog would print every line to standard output. Does nothing if structlog is configured already.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[filter_by_level, structlog.stdlib.render_to_log_kwargs],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=LoggerFactory(),
        )


def configure_logging(level: str, form: str, audit: str = "off") -> None:
    """Send all logs of this process to standard error in the configured format; may be called repeatedly.

    A JSON line has ``timestamp`` (ISO 8601, UTC), ``level``, ``logger`` and ``event``, then the fields of the event,
    and for an exception ``exception``: its chain with types, messages and frames.

    Args:
        level: Minimum level of the lines.
        form: Format of the lines: ``auto``, ``console`` or ``json``.
        audit: Destination of the audit log: ``log``, ``off`` or a path.

    Raises:
        ConfigurationError: The audit file cannot be written.
    """
    on_terminal = sys.stderr.isatty()
    in_json = form == "json" or (form == "auto" and not on_terminal)
    min_level = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_log_level,
        add_logger_name,
        StackInfoRenderer(),
        TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks without local variables, which may hold passwords and whole requests.
    as_json: list[Processor] = [ExceptionRenderer(ExceptionDictTransformer(show_locals=False)), _order, JSONRenderer()]
    colors = on_terminal and not os.environ.get("NO_COLOR")  # https://no-color.org
    console: list[Processor] = [_escape, ConsoleRenderer(colors=colors, exception_formatter=plain_traceback)]
    handler = BatchingHandler(logging.StreamHandler(sys.stderr))
    json_formatter = _JsonFormatter(_formatter(shared, as_json))
    handler.setFormatter(json_formatter if in_json else _formatter(shared, console))
    logging.basicConfig(handlers=[handler], level=min_level, force=True)
    _configure_audit(audit, json_formatter)
    # No line contains these values, and collecting each has a cost.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*shared, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(min_level),
        logger_factory=LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _configure_audit(destination: str, formatter: logging.Formatter) -> None:
    """Write the audit as JSON to a file, or with the other logs if no file is set."""
    audit = logging.getLogger(AUDIT)
    audit.setLevel(logging.INFO)  # regardless of log.level
    for handler in audit.handlers[:]:
        audit.removeHandler(handler)
        handler.close()
    audit.propagate = destination == "log"
    if destination in ("log", "off"):
        return
    try:
        # Reopens the file when its inode changes, so log rotation needs no signal.
        file = WatchedFileHandler(os.path.expanduser(destination), encoding="utf-8")  # noqa: PTH111 - a str, not a Path
    except OSError as error:
        raise ConfigurationError(f"log.audit: cannot write to {destination}: {error.strerror}") from error
    handler = BatchingHandler(file)
    handler.setFormatter(formatter)
    audit.addHandler(handler)


def _formatter(shared: list[Processor], render: list[Processor]) -> ProcessorFormatter:
    return ProcessorFormatter(
        foreign_pre_chain=[*shared, ExtraAdder()], processors=[ProcessorFormatter.remove_processors_meta, *render]
    )


class _JsonFormatter(logging.Formatter):
    """Formats records as JSON. Audit records skip the processor chain, which takes five times as long."""

    def __init__(self, default: logging.Formatter) -> None:
        super().__init__()
        self._default = default

    def format(self, record: logging.LogRecord) -> str:
        if record.name != AUDIT:
            return self._default.format(record)
        fields = record.__dict__
        moment = datetime.fromtimestamp(record.created, UTC).replace(tzinfo=None)
        line: dict[str, Any] = {
            "timestamp": moment.isoformat(timespec="microseconds") + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.msg,
            **structlog.contextvars.get_contextvars(),
            **{name: fields[name] for name in AUDIT_FIELDS if name in fields},
        }
        try:
            text = orjson.dumps(line)
        except orjson.JSONEncodeError:  # a lone surrogate
            return json.dumps(line)
        # Only ``json`` escapes the non-ASCII characters that some viewers treat as line breaks.
        return text.decode() if text.isascii() else json.dumps(line)


class BatchingHandler(logging.Handler):
    """Joins the lines of a turn of the event loop where ``BATCH_LOG_LINES`` is set: each write is a system call."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._lines: list[str] = []
        self._scheduled = False

    def emit(self, record: logging.LogRecord) -> None:
        """Format a record, and write it now or at the end of the turn of the event loop."""
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - a logging error must not fail a call
            self.handleError(record)
            return
        try:
            loop = asyncio.get_running_loop() if BATCH_LOG_LINES.get() else None
        except RuntimeError:  # another thread that inherited the context
            loop = None
        if loop is None:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write the pending lines."""
        self.acquire()
        try:
            lines, self._lines, self._scheduled = self._lines, [], False
            if lines:
                self._target.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))
        finally:
            self.release()

    def close(self) -> None:
        """Write the pending lines and close the target."""
        self.flush()
        self._target.close()
        super().close()


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape control characters, so that text from clients cannot start a new line or set a colour."""
    return {
        key: _CONTROL.sub(lambda found: ascii(found[0])[1:-1], value)
        if isinstance(value, str) and key not in ("exception", "stack")
        else value
        for key, value in event.items()
    }


def _order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**{name: event.pop(name) for name in _FIRST_FIELDS if name in event}, **event}
