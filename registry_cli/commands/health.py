"""``health``."""

from datetime import UTC
from typing import Any

import click
from google.protobuf.timestamp_pb2 import Timestamp

from registry_cli.calls import DATA, Call, RegistryCommand, talks
from registry_cli.completion import NAME
from registry_cli.documents import document, milliseconds, time_text
from registry_cli.exits import Exit
from registry_cli.output import age, status
from registry_cli.services import health_cell, response_time, status_word
from registry_cli.several import each
from registry_client import Health, HealthStatus

_WELL = (HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_DEGRADED)


@click.command(cls=RegistryCommand)
@click.argument("names", metavar="[NAME]...", nargs=-1, type=NAME)
@talks(*DATA)
async def command(call: Call, *, names: tuple[str, ...]) -> Exit:
    """Show the health of services, or of the registry.

    With names: the newest check of each, and when its lease ends. Without: how the registry itself is.
    The exit code is 0 if all are healthy or degraded, else 7.
    """
    if not names:
        return await _registry(call)
    found = await each(call, names, call.client.get_service_health)
    show_health(call, names, [(name, health, lease) for name, (health, lease) in found.results], leases=True)
    return found.code or verdict(health for _, (health, _) in found.results)


def verdict(healths: Any) -> Exit:
    """Exit code: whether all are healthy or degraded."""
    return Exit.OK if all(health.status in _WELL for health in healths) else Exit.NOT_WELL


def show_health(
    call: Call, names: tuple[str, ...], known: list[tuple[str, Health, Timestamp | None]], *, leases: bool
) -> None:
    """Prints the health of services: a table, an object for one name, or an array."""
    if call.out.is_table:
        if known:
            call.out.table(
                ("NAME", "HEALTH", "CHECKED", "RESPONSE", *(("LEASE",) if leases else ()), "ERROR"),
                [
                    (
                        name,
                        health_cell(health),
                        f"{age(health.last_check.ToDatetime(UTC))} ago" if health.HasField("last_check") else "",
                        response_time(health),
                        *((_left(lease),) if leases else ()),
                        health.error,
                    )
                    for name, health, lease in known
                ],
            )
        return
    documents = [
        {"name": name, **document(health)} | ({"leaseExpiresAt": time_text(lease)} if lease else {})
        for name, health, lease in known
    ]
    if len(names) > 1:
        call.out.data(documents)
    elif documents:
        call.out.data(documents[0])


def _left(lease: Timestamp | None) -> str:
    """How long a lease still lasts. By the clock of the store; a clock here that differs shows another time."""
    if lease is None:
        return ""
    now = Timestamp()
    now.GetCurrentTime()
    return age(now.ToDatetime(UTC), lease.ToDatetime(UTC))


async def _registry(call: Call) -> Exit:
    health = await call.client.get_registry_health()
    if call.out.is_table:
        lag = milliseconds(health.replication_lag)
        call.out.facts(
            (
                ("registry", call.client.target),
                ("status", status(status_word(health.status))),
                ("store", "connected" if health.store_connected else "away"),
                ("services", str(health.stats.total_services)),
                ("revision", str(health.revision)),
                ("behind", f"{lag:g} ms"),
            )
        )
    else:
        shown = document(health)
        shown["timestamp"], shown["statistics"] = shown.pop("checkedAt"), shown.pop("stats")
        call.out.data(shown)
    return verdict([health])
