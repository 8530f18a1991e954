"""Logs: structlog's and those of every library that uses ``logging``, through one renderer to standard error."""

import logging
import os
import sys

import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import ExceptionRenderer, JSONRenderer, StackInfoRenderer, TimeStamper
from structlog.stdlib import ExtraAdder, LoggerFactory, ProcessorFormatter, add_log_level, add_logger_name
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from registry_server.config import LogSettings

_FIRST_FIELDS = ("timestamp", "level", "logger", "event")


def configure_logging(settings: LogSettings) -> None:
    """Sends all logs of this process to standard error in the form that is set; may be called again.

    A line of JSON has ``timestamp`` (ISO 8601, UTC), ``level``, ``logger`` and ``event``, then the event's own fields,
    and for an exception ``exception``: its chain with types, messages and frames.

    Args:
        settings: Least level and form.
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
    render: list[Processor]
    if in_json:
        render = [ExceptionRenderer(ExceptionDictTransformer(show_locals=False)), _order, JSONRenderer()]
    else:
        colors = on_terminal and not os.environ.get("NO_COLOR")  # https://no-color.org
        render = [ConsoleRenderer(colors=colors, exception_formatter=plain_traceback)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        ProcessorFormatter(
            foreign_pre_chain=[*shared, ExtraAdder()],
            processors=[ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*shared, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {**{name: event.pop(name) for name in _FIRST_FIELDS if name in event}, **event}
