"""How services are shown, the same wherever a command prints some."""

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Final

from registry_cli.documents import document, milliseconds, word
from registry_cli.output import Cell, Output, age, several, status
from registry_client import Health, HealthStatus, Service

_HEADERS: Final = ("NAME", "VERSION", "HEALTH", "ENDPOINT", "CAPABILITIES", "AGE")
_WIDE: Final = (*_HEADERS, "GROUP", "ENVIRONMENT", "TAGS", "LABELS", "REVISION")
_SHOWN: Final = 3


def show_services(out: Output, services: Sequence[Service]) -> None:
    """Prints services as a table, as one array, or their names."""
    if out.is_table:
        out.table(_WIDE if out.wide else _HEADERS, [_row(service, wide=out.wide) for service in services])
    elif out.format == "name":
        out.names(service.name for service in services)
    else:
        out.data([document(service) for service in services])


def health_cell(health: Health) -> Cell:
    """The status in its colour."""
    return status(status_word(health.status))


def status_word(value: HealthStatus.ValueType) -> str:
    """A status as people and JSON write it."""
    return word(HealthStatus.DESCRIPTOR, value)


def response_time(health: Health) -> str:
    """How long the newest probe took; empty if there was none."""
    return f"{milliseconds(health.response_time):.1f} ms" if health.HasField("response_time") else ""


def capabilities(service: Service, shown: int) -> str:
    """What a service can do, as ``register --capability`` takes it."""
    items: Iterable[str] = (
        f"{each.name}@{each.version}" if each.version else each.name for each in service.capabilities
    )
    return several(list(items), shown)


def _row(service: Service, *, wide: bool) -> list[str | Cell]:
    shown = 0 if wide else _SHOWN
    row: list[str | Cell] = [
        service.name,
        service.version,
        health_cell(service.health),
        service.endpoint,
        capabilities(service, shown),
        age(service.registered_at.ToDatetime(UTC)),
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
