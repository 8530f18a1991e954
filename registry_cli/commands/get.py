"""``get``."""

import click

from registry_cli.calls import ALL, Call, RegistryCommand, talks
from registry_cli.completion import NAME
from registry_cli.documents import document
from registry_cli.exits import Exit
from registry_cli.services import show_services
from registry_cli.several import each


@click.command(cls=RegistryCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NAME)
@talks(*ALL)
async def command(call: Call, *, names: tuple[str, ...]) -> Exit:
    """Show services by name.

    JSON and YAML are one object for one name, an array for several; `register -f` takes both.
    """
    found = await each(call, names, call.client.get_service)
    services = [service for _, service in found.results]
    if len(names) == 1 and services and not call.out.is_table and call.out.format != "name":
        call.out.data(document(services[0]))
    elif services:
        show_services(call.out, services)
    return found.code
