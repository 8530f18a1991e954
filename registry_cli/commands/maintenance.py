"""The command ``maintenance``."""

from typing import Literal

import click

from ossa_common.json_writer import message_document
from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.completion import SERVICE_NAME
from registry_cli.exits import Exit, Failure
from registry_cli.per_name import call_for_each_name
from registry_cli.services import status_text
from registry_client import Service


@registry_command(*DATA_FORMATS)
@click.argument("state", type=click.Choice(("on", "off")))
@click.argument("names", metavar="[NAME]...", nargs=-1, type=SERVICE_NAME)
@click.option("--group", default="", help="All services of this group.")
@click.option("--reason", default="", help="Reason for the maintenance; only with 'on'.")
async def command(
    context: CommandContext, *, state: Literal["on", "off"], names: tuple[str, ...], group: str, reason: str
) -> Exit:
    """Start or end maintenance of services.

    \b
    ossa-registry maintenance on translator-1 translator-2 --reason 'new model'
    ossa-registry maintenance off --group translator

    A service in maintenance remains registered and keeps its lease. Probes, reports and new registrations do not end
    its maintenance, and the status that they observe is its status afterwards. Only operators may call this.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    if reason and state == "off":
        raise click.UsageError("--reason requires 'on'.")
    if not names and not group:
        raise click.UsageError("Missing NAME or --group.")
    members = [each.name for each in await context.client.find_services(group=group)] if group else []
    if group and not members:
        raise Failure(f"no service is in the group {group!r}", Exit.NOT_FOUND)

    async def switch(name: str) -> Service:
        return await context.client.set_maintenance(name, enabled=state == "on", reason=reason)

    outcome = await call_for_each_name(context, (*names, *members), switch)
    if context.out.is_table:
        context.out.print_lines(f"{name} is {_state_text(service)}" for name, service in outcome.results)
    else:
        documents = [{"name": name, **message_document(service.health)} for name, service in outcome.results]
        context.out.print_documents(documents, single=len(names) == 1 and not group)
    return outcome.code


def _state_text(service: Service) -> str:
    return "in maintenance" if service.HasField("maintenance") else status_text(service.health.status)
