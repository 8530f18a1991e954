"""Presentation of services, shared by all commands that print them."""

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Final

from ossa_common.json_shape import STATUS_WORDS
from ossa_common.json_writer import duration_number, message_document
from registry_cli.output import Cell, Output, format_age, shorten_list, status_cell
from registry_client import Health, HealthStatus, Service

_HEADERS: Final = ("NAME", "VERSION", "HEALTH", "ENDPOINT", "CAPABILITIES", "AGE")
_WIDE_HEADERS: Final = (*_HEADERS, "GROUP", "ENVIRONMENT", "TAGS", "LABELS", "REVISION")
_MAX_CAPABILITIES: Final = 3


def show_services(
    out: Output, services: Sequence[Service], *, single: bool = False, lines: Iterable[str] | None = None
) -> None:
    """Print services.

    Args:
        out: Where to print them, and in which format.
        services: The services.
        single: Whether JSON and YAML output is an object instead of an array.
        lines: Lines to print instead of a table.
    """
    if out.format == "name":
        out.print_lines(service.name for service in services)
    elif not out.is_table:
        documents = [message_document(service) for service in services]
        for each in documents:
            if not each["revision"]:  # not registered yet
                del each["revision"]
        out.print_documents(documents, single=single)
    elif lines is not None:
        out.print_lines(lines)
    else:
        out.print_table(_WIDE_HEADERS if out.wide else _HEADERS, [_row(service, wide=out.wide) for service in services])


def health_cell(health: Health) -> Cell:
    """Return a cell with the status in its colour."""
    return status_cell(status_text(health.status))


def status_text(value: HealthStatus.ValueType) -> str:
    """Return a status in lower case, as in JSON."""
    return STATUS_WORDS.get(value, "unknown")


def response_time(health: Health) -> str:
    """Return the response time of the last probe; empty if there was none."""
    return f"{duration_number(health.response_time):.1f} ms" if health.HasField("response_time") else ""


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
