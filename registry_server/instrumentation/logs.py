"""Logs: structlog's and those of every library that uses ``logging``, through one renderer to standard error."""

import asyncio
import json
import logging
import os
import re
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from typing import Any, Final, Protocol

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
from registry_server.instrumentation.audit import FIELDS as AUDIT_FIELDS
from registry_server.instrumentation.audit import LOGGER as AUDIT
from registry_server.instrumentation.audit import TOGETHER

_FIRST_FIELDS: Final = ("timestamp", "level", "logger", "event")
# Also those that some terminals and viewers take for the end of a line.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Form(Protocol):
    """What to log and how, as ``LogSettings`` says it; a process that does without settings brings its own."""

    @property
    def level(self) -> str:
        """Least level that is logged."""

    @property
    def format(self) -> str:
        """Form of the lines."""

    @property
    def audit(self) -> str:
        """Where the audit goes."""


def log_as_a_library() -> None:
    """Sends our logs through ``logging``, for a program that has the registry in itself and its own idea of logs.

    Without it structlog would print every line to standard output. Does nothing if the program has configured it.
    """
    if not structlog.is_configured():
        structlog.configure(
            processors=[filter_by_level, structlog.stdlib.render_to_log_kwargs],
            wrapper_class=structlog.stdlib.BoundLogger,
            logger_factory=LoggerFactory(),
        )


def configure_logging(settings: Form) -> None:
    """Sends all logs of this process to standard error in the form that is set; may be called again.

    A line of JSON has ``timestamp`` (ISO 8601, UTC), ``level``, ``logger`` and ``event``, then the event's own fields,
    and for an exception ``exception``: its chain with types, messages and frames.

    Args:
        settings: Least level and form, and where the audit goes.

    Raises:
        ConfigurationError: The file of the audit cannot be written.
    """
    on_terminal = sys.stderr.isatty()
    in_json = settings.format == "json" or (settings.format == "auto" and not on_terminal)
    level = logging.getLevelNamesMapping()[settings.level.upper()]
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
    logging.basicConfig(handlers=[handler], level=level, force=True)
    _configure_audit(settings.audit, json_formatter)
    # No line has them, and each costs a question.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*shared, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _configure_audit(where: str, formatter: logging.Formatter) -> None:
    """Sends the audit to a file if one is set, as JSON; else its lines are among the others."""
    audit = logging.getLogger(AUDIT)
    audit.setLevel(logging.INFO)  # whatever the level of the rest
    for handler in audit.handlers[:]:
        audit.removeHandler(handler)
        handler.close()
    audit.propagate = where == "log"
    if where in ("log", "off"):
        return
    try:
        # It looks before each line whether its file is still the one of that name: rotation needs no signal.
        file = WatchedFileHandler(os.path.expanduser(where), encoding="utf-8")  # noqa: PTH111 - of a text
    except OSError as error:
        raise ConfigurationError(f"log.audit: cannot write to {where}: {error.strerror}") from error
    handler = BatchingHandler(file)
    handler.setFormatter(formatter)
    audit.addHandler(handler)


def _formatter(shared: list[Processor], render: list[Processor]) -> ProcessorFormatter:
    return ProcessorFormatter(
        foreign_pre_chain=[*shared, ExtraAdder()], processors=[ProcessorFormatter.remove_processors_meta, *render]
    )


class _JsonFormatter(logging.Formatter):
    """Writes JSON; lines of the audit at a fifth of what the chain of processors costs, since every change has one."""

    def __init__(self, others: logging.Formatter) -> None:
        super().__init__()
        self._others = others

    def format(self, record: logging.LogRecord) -> str:
        if record.name != AUDIT:
            return self._others.format(record)
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
        except orjson.JSONEncodeError:  # a part of a character alone
            return json.dumps(line)
        # Else it may hold what some viewers take for the end of a line, which only the other one escapes.
        return text.decode() if text.isascii() else json.dumps(line)


class BatchingHandler(logging.Handler):
    """Has the lines of ``TOGETHER`` that come in one turn of the event loop written in one: each is a system call."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._lines: list[str] = []
        self._scheduled = False

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a line."""
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - whatever it is, no call fails of its log
            self.handleError(record)
            return
        try:
            loop = asyncio.get_running_loop() if TOGETHER.get() else None
        except RuntimeError:  # a thread that has the context of a block, but no loop
            loop = None
        if loop is None:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Has written what was taken."""
        self.acquire()
        try:
            lines, self._lines, self._scheduled = self._lines, [], False
            if lines:
                self._target.handle(logging.makeLogRecord({"msg": "\n".join(lines)}))
        finally:
            self.release()

    def close(self) -> None:
        """Writes what is left."""
        self.flush()
        self._target.close()
        super().close()


def _escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Keeps what clients send from making lines, or colours, of its own."""
    return {
        key: _CONTROL.sub(lambda found: ascii(found[0])[1:-1], value)
        if isinstance(value, str) and key not in ("exception", "stack")
        else value
        for key, value in event.items()
    }


def _order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**{name: event.pop(name) for name in _FIRST_FIELDS if name in event}, **event}
