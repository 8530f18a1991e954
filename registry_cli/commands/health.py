"""The command ``health``."""

from datetime import UTC, datetime
from typing import Any

import click
from google.protobuf.timestamp_pb2 import Timestamp

from ossa_common.json_writer import duration_number, message_document, time_text
from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.completion import SERVICE_NAME
from registry_cli.errors import error_text
from registry_cli.exits import Exit
from registry_cli.output import format_age, status_cell
from registry_cli.per_name import call_for_each_name
from registry_cli.services import health_cell, response_time, status_text
from registry_client import Health, HealthStatus, Unauthenticated

_PASSING = (HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_DEGRADED)


@registry_command(*DATA_FORMATS)
@click.argument("names", metavar="[NAME]...", nargs=-1, type=SERVICE_NAME)
async def command(context: CommandContext, *, names: tuple[str, ...]) -> Exit:
    """Show the health of services or of the registry.

    With names: the last check of each service, and the remaining time of its lease. Without: the registry itself;
    without a credential, where one is needed, only whether it serves. The exit code is 0 if all are healthy or
    degraded, else 7.
    """
    if not names:
        return await _show_registry_health(context)
    outcome = await call_for_each_name(context, names, context.client.get_service_health)
    now = await context.registry_time() if context.out.is_table and outcome.results else None
    show_health(
        context, names, [(name, health, lease) for name, (health, lease) in outcome.results], leases=True, now=now
    )
    return outcome.code or exit_code_of(health for _, (health, _) in outcome.results)


def exit_code_of(healths: Any) -> Exit:
    """Return ``OK`` if all are healthy or degraded, else ``UNHEALTHY``."""
    return Exit.OK if all(health.status in _PASSING for health in healths) else Exit.UNHEALTHY


def show_health(
    context: CommandContext,
    names: tuple[str, ...],
    results: list[tuple[str, Health, Timestamp | None]],
    *,
    leases: bool,
    now: datetime | None = None,
) -> None:
    """Print the health of services: a table, or an object for one name and an array for several.

    Args:
        context: Where to print.
        names: The names that the user gave.
        results: Name, health and end of the lease of each service.
        leases: Whether to print the leases.
        now: Time by the clock of the registry; None = by the local one.
    """
    if context.out.is_table:
        if results:
            context.out.print_table(
                ("NAME", "HEALTH", "CHECKED", "RESPONSE", *(("LEASE",) if leases else ()), "ERROR"),
                [
                    (
                        name,
                        health_cell(health),
                        checked_text(health, now),
                        response_time(health),
                        *((remaining_time(lease, now),) if leases else ()),
                        health.error,
                    )
                    for name, health, lease in results
                ],
            )
        return
    documents = [
        {"name": name, **message_document(health)} | ({"leaseExpiresAt": time_text(lease)} if lease else {})
        for name, health, lease in results
    ]
    context.out.print_documents(documents, single=len(names) == 1)


def checked_text(health: Health, now: datetime | None) -> str:
    """Return when a service was checked; empty if it was not."""
    return f"{format_age(health.last_check.ToDatetime(UTC), now)} ago" if health.HasField("last_check") else ""


def remaining_time(lease: Timestamp | None, now: datetime | None) -> str:
    """Return the remaining time of a lease; empty if the service is permanent."""
    return format_age(now or datetime.now(UTC), lease.ToDatetime(UTC)) if lease else ""


async def _show_registry_health(context: CommandContext) -> Exit:
    try:
        health = await context.client.get_registry_health()
    except Unauthenticated as error:
        if context.connection.has_token:
            raise
        return await _show_readiness(context, error)
    if context.out.is_table:
        lag = duration_number(health.replication_lag)
        context.out.print_rows(
            (
                ("registry", context.client.target),
                ("status", status_cell(status_text(health.status))),
                ("store", "connected" if health.store_connected else "unavailable"),
                ("services", str(health.stats.total_services)),
                ("revision", str(health.revision)),
                ("lag", f"{lag:g} ms"),
            )
        )
    else:
        fields = message_document(health)
        fields["timestamp"], fields["statistics"] = fields.pop("checkedAt"), fields.pop("stats")
        context.out.print_document(fields)
    return exit_code_of([health])


async def _show_readiness(context: CommandContext, refusal: Unauthenticated) -> Exit:
    """Show what a registry with a policy answers without a credential."""
    serving = await context.client.is_serving()
    status = "healthy" if serving else "unhealthy"
    if context.out.is_table:
        context.out.print_rows((("registry", context.client.target), ("status", status_cell(status))))
        context.out.print_notice(
            f"store, services and revision are not shown: {error_text(refusal, context.client.target)}"
        )
    else:
        context.out.print_document({"status": status})
    return Exit.OK if serving else Exit.UNHEALTHY
