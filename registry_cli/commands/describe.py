"""The command ``describe``."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from ossa.registry.v1.registry_service_pb2 import GetServiceHealthResponse
from ossa_common.json_writer import duration_number, message_document, time_text
from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.commands.health import checked_text, remaining_time
from registry_cli.completion import SERVICE_NAME
from registry_cli.events import event_cells, event_document
from registry_cli.output import Cell, format_age
from registry_cli.recent import newest_events
from registry_cli.services import capability_list, health_cell, response_time, status_text
from registry_client import Event, Health, RegistryError, Service

_EVENT_HEADERS = ("TIME", "EVENT", "HEALTH", "REASON", "DETAILS")


@registry_command(*DATA_FORMATS)
@click.argument("name", type=SERVICE_NAME)
@click.option("--events", "count", type=click.IntRange(0, 1000), default=10, show_default=True, help="Newest events.")
async def command(context: CommandContext, *, name: str, count: int) -> None:
    """Show a service with its lease, check, owner and events.

    The owner is shown to itself and to operators. Events are those that the registry keeps to resume watches.
    """
    service = await context.client.get_service(name)
    details = await context.client.get_service_health_details(name)
    events = await _events(context, name, count) if count else []
    if not context.out.is_table:
        context.out.print_document(_document(service, details, events))
        return
    now = await context.registry_time()
    context.out.print_rows(_rows(service, details, now))
    if events:
        context.out.print_line("")
        context.out.print_table(_EVENT_HEADERS, [[*cells[:2], *cells[3:]] for cells in map(event_cells, events)])


async def _events(context: CommandContext, name: str, count: int) -> list[Event]:
    try:
        return (await newest_events(context.client, name, count))[0]
    except RegistryError:  # an earlier version of the registry; the events are an extra
        return []


def _document(service: Service, details: GetServiceHealthResponse, events: Sequence[Event]) -> dict[str, Any]:
    document = message_document(service) | {"health": message_document(details.health)}
    if service.HasField("maintenance"):
        document["observed"] = message_document(details.observed)
    if details.HasField("lease_expires_at"):
        document["leaseExpiresAt"] = time_text(details.lease_expires_at)
    if details.HasField("load"):
        document["load"] = message_document(details.load)
    if details.owner:
        document["owner"] = details.owner
    return document | {"events": [event_document(event, "") for event in events]}


def _rows(service: Service, details: GetServiceHealthResponse, now: datetime) -> list[tuple[str, str | Cell]]:
    """Return the fields of a service that are set."""
    metadata = service.metadata
    lease = details.lease_expires_at if details.HasField("lease_expires_at") else None
    ttl = duration_number(service.ttl) / 1000 if service.HasField("ttl") else None
    maintenance = service.maintenance
    rows: list[tuple[str, str | Cell]] = [
        ("name", service.name),
        ("version", service.version),
        ("endpoint", service.endpoint),
        ("group", service.group),
        ("health", health_cell(details.health)),
        ("  checked", ", ".join(filter(None, (checked_text(details.health, now), response_time(details.health))))),
        ("  since", _age(details.health, now)),
        ("  error", details.health.error),
    ]
    if service.HasField("maintenance"):
        since = format_age(maintenance.since.ToDatetime(UTC), now)
        rows += [
            ("maintenance", f"for {since}" + (f", by {maintenance.by}" if maintenance.by else "")),
            ("  reason", maintenance.reason),
            ("  observed", ": ".join(filter(None, (status_text(details.observed.status), details.observed.error)))),
        ]
    rows += [
        ("draining", "yes" if service.draining else ""),
        ("health check", _check_text(service)),
        ("lease", f"{remaining_time(lease, now)} left" if lease else ("permanent" if ttl == 0 else "")),
        ("  length", f"{ttl:g} s" if ttl else ""),
        ("load", _load_text(details)),
        ("owner", details.owner),
        ("instance", service.instance_id),
        ("capabilities", capability_list(service, 0)),
        ("tags", ",".join(metadata.tags)),
        ("labels", ",".join(f"{key}={metadata.labels[key]}" for key in sorted(metadata.labels))),
        ("environment", metadata.environment),
        ("description", metadata.description),
        ("author", metadata.author),
        ("documentation", metadata.documentation),
        ("registered", f"{format_age(service.registered_at.ToDatetime(UTC), now)} ago"),
        ("updated", f"{format_age(service.updated_at.ToDatetime(UTC), now)} ago"),
        ("revision", str(service.revision)),
    ]
    return [row for row in rows if row[1]]


def _age(health: Health, now: datetime) -> str:
    return format_age(health.status_changed_at.ToDatetime(UTC), now) if health.HasField("status_changed_at") else ""


def _load_text(details: GetServiceHealthResponse) -> str:
    if not details.HasField("load"):
        return ""
    load = details.load
    return f"{load.in_flight} in flight" + (f", capacity {load.capacity}" if load.capacity else "")


def _check_text(service: Service) -> str:
    """Return the health check of a service in the words of its JSON."""
    check = message_document(service).get("healthCheck", {"type": "default of the endpoint's scheme"})
    return ", ".join(f"{key} {value}" if key != "type" else str(value) for key, value in check.items())
