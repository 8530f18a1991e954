"""Settings of watches, logs, traces and shutdown."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from registry_server.config.addresses import bad_setting
from registry_server.config.fields import KIB, MIB, Metavar, Number, SettingsGroup


def _check_destination(value: str) -> str:
    if value not in ("log", "off") and ("/" not in value or value.endswith("/")):
        raise bad_setting("must be log, off or the path of a file, with a slash in it")
    return value


class WatchSettings(SettingsGroup):
    """Watches: limits of history and buffers. A watch whose buffer is full is ended."""

    history_seconds: Annotated[Number, Field(ge=0, le=3600)] = 60
    """Time for which each process keeps all changes in memory, so that watches can resume, even if they are more than
    redis.events_max_length; at most 96 MiB, of which older changes take at most 48 MiB."""

    buffer_events: Annotated[Number, Field(ge=1, le=10_000_000)] = 10_000
    """Maximum number of events that are buffered for one watcher."""
    # An event contains a service, which may have 128 KiB; a single event may be larger than the buffer.
    buffer_bytes: Annotated[Number, Field(ge=128 * KIB, le=1024 * MIB)] = 8 * MIB
    """Maximum size of the events that are buffered for one watcher, in bytes."""


class LogSettings(SettingsGroup):
    """Logs, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of the lines."""
    format: Literal["auto", "console", "json"] = "auto"
    """Format of the lines. auto means console on a terminal, otherwise json."""
    requests: Literal["off", "errors", "all"] = "errors"
    """Requests to log: none, those that end with an error, or all."""
    audit: Annotated[str, AfterValidator(_check_destination), Metavar("WHERE")] = "log"
    """Destination of the audit log, which records every change and who made it: log writes it with the other lines, off
    disables it, and a path that contains a slash writes it to that file."""


class TraceSettings(SettingsGroup):
    """Traces."""

    enabled: bool = False
    """Whether calls are traced with OpenTelemetry. Requires the extra otel. The standard OTEL_* variables configure the
    exporter."""


class ShutdownSettings(SettingsGroup):
    """Shutdown."""

    grace_seconds: Annotated[Number, Field(ge=0, le=3600)] = 10
    """Maximum time for calls in flight to complete after SIGTERM, in seconds."""
