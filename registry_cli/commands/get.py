"""The command ``get``."""

import click

from registry_cli.calls import ALL_FORMATS, CommandContext, RegistryCommand, registry_command
from registry_cli.completion import SERVICE_NAME
from registry_cli.documents import document
from registry_cli.exits import Exit
from registry_cli.per_name import call_for_each_name
from registry_cli.services import show_services


@click.command(cls=RegistryCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SERVICE_NAME)
@registry_command(*ALL_FORMATS)
async def command(context: CommandContext, *, names: tuple[str, ...]) -> Exit:
    """Show services by name.

    JSON and YAML output is an object for one name, an array for several; `register -f` accepts both.
    """
    outcome = await call_for_each_name(context, names, context.client.get_service)
    services = [service for _, service in outcome.results]
    if len(names) == 1 and services and not context.out.is_table and context.out.format != "name":
        context.out.print_document(document(services[0]))
    elif services:
        show_services(context.out, services)
    return outcome.code
