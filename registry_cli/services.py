"""Presentation of services, shared by all commands that print them."""

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Final

from registry_cli.documents import document, enum_text, milliseconds
from registry_cli.output import Cell, Output, format_age, shorten_list, status_cell
from registry_client import Health, HealthStatus, Service

_HEADERS: Final = ("NAME", "VERSION", "HEALTH", "ENDPOINT", "CAPABILITIES", "AGE")
_WIDE_HEADERS: Final = (*_HEADERS, "GROUP", "ENVIRONMENT", "TAGS", "LABELS", "REVISION")
_MAX_CAPABILITIES: Final = 3


def show_services(out: Output, services: Sequence[Service]) -> None:
    """Print services as a table, as an array, or only their names."""
    if out.is_table:
        out.print_table(_WIDE_HEADERS if out.wide else _HEADERS, [_row(service, wide=out.wide) for service in services])
    elif out.format == "name":
        out.print_names(service.name for service in services)
    else:
        out.print_document([document(service) for service in services])


def health_cell(health: Health) -> Cell:
    """Return a cell with the status in its colour."""
    return status_cell(status_text(health.status))


def status_text(value: HealthStatus.ValueType) -> str:
    """Return a status in lower case, as in JSON."""
    return enum_text(HealthStatus.DESCRIPTOR, value)


def response_time(health: Health) -> str:
    """Return the response time of the last probe; empty if there was none."""
    return f"{milliseconds(health.response_time):.1f} ms" if health.HasField("response_time") else ""


def capability_list(service: Service, limit: int) -> str:
    """Return the capabilities of a service in the syntax of ``register --capability``."""
    items: Iterable[str] = (
        f"{each.name}@{each.version}" if each.version else each.name for each in service.capabilities
    )
    return shorten_list(list(items), limit)


def _row(service: Service, *, wide: bool) -> list[str | Cell]:
    limit = 0 if wide else _MAX_CAPABILITIES
    row: list[str | Cell] = [
        service.name,
        service.version,
        health_cell(service.health),
        service.endpoint,
        capability_list(service, limit),
        format_age(service.registered_at.ToDatetime(UTC)),
    ]
    if wide:
        labels = service.metadata.labels
        row += [
            service.group,
            service.metadata.environment,
            ",".join(service.metadata.tags),
            ",".join(f"{key}={labels[key]}" for key in sorted(labels)),
            str(service.revision),
        ]
    return row
