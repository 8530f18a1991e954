"""``maintenance``."""

from typing import Literal

import click

from registry_cli.calls import DATA, Call, RegistryCommand, talks
from registry_cli.completion import NAME
from registry_cli.documents import document
from registry_cli.exits import Exit
from registry_cli.services import status_word
from registry_cli.several import each
from registry_client import Health, HealthStatus

_MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE


@click.command(cls=RegistryCommand)
@click.argument("state", type=click.Choice(("on", "off")))
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NAME)
@click.option("--reason", default="", help="Why, for those who look; with on.")
@talks(*DATA)
async def command(call: Call, *, state: Literal["on", "off"], names: tuple[str, ...], reason: str) -> Exit:
    """Take services out, or back in.

    A service in maintenance stays registered and keeps its lease; no probe moves its status. Back in, its status is
    unknown until the next probe, or healthy at once if it has no probe but heartbeats.
    """
    if reason and state == "off":
        raise click.UsageError("--reason goes with on.")

    async def switch(name: str) -> Health:
        if state == "on":
            return await call.client.report_service_health(name, _MAINTENANCE, error=reason)
        service = await call.client.get_service(name)
        if service.health.status != _MAINTENANCE:  # what probes have found is not to be lost
            call.out.remark(f"{name} is not in maintenance")
            return service.health
        by_heartbeat = service.health_check.WhichOneof("probe") == "heartbeat"
        return await call.client.report_service_health(name, "healthy" if by_heartbeat else "unknown")

    found = await each(call, names, switch)
    if call.out.is_table:
        for name, health in found.results:
            call.out.line(f"{name} is {_told(health)}")
    else:
        documents = [{"name": name, **document(health)} for name, health in found.results]
        if documents:
            call.out.data(documents if len(names) > 1 else documents[0])
    return found.code


def _told(health: Health) -> str:
    return "in maintenance" if health.status == _MAINTENANCE else status_word(health.status)
