"""The command ``maintenance``."""

from typing import Literal

import click

from ossa_common.json_writer import message_document
from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.exits import Exit
from registry_cli.per_name import NAMES, call_for_each_name
from registry_cli.services import status_text
from registry_client import Health, HealthStatus
from registry_client.values import status_after_maintenance

_MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE


@registry_command(*DATA_FORMATS)
@click.argument("state", type=click.Choice(("on", "off")))
@NAMES
@click.option("--reason", default="", help="Reason for the maintenance; only with 'on'.")
async def command(context: CommandContext, *, state: Literal["on", "off"], names: tuple[str, ...], reason: str) -> Exit:
    """Start or end maintenance of services.

    A service in maintenance remains registered and keeps its lease; probes do not change its status. After
    maintenance, its status is unknown until the next probe, or healthy immediately if its health check is heartbeat.
    """
    if reason and state == "off":
        raise click.UsageError("--reason requires 'on'.")

    async def switch(name: str) -> Health:
        if state == "on":
            return await context.client.report_service_health(name, _MAINTENANCE, error=reason)
        service = await context.client.get_service(name)
        if service.health.status != _MAINTENANCE:  # keeps the status that probes have determined
            context.out.print_notice(f"{name} is not in maintenance")
            return service.health
        return await context.client.report_service_health(name, status_after_maintenance(service))

    outcome = await call_for_each_name(context, names, switch)
    if context.out.is_table:
        context.out.print_lines(f"{name} is {_state_text(health)}" for name, health in outcome.results)
    else:
        documents = [{"name": name, **message_document(health)} for name, health in outcome.results]
        if documents:
            context.out.print_documents(documents, single=len(names) == 1)
    return outcome.code


def _state_text(health: Health) -> str:
    return "in maintenance" if health.status == _MAINTENANCE else status_text(health.status)
