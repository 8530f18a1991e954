"""The command ``heartbeat``."""

import click

from registry_cli.calls import DATA_FORMATS, CommandContext, RegistryCommand, registry_command
from registry_cli.completion import SERVICE_NAME
from registry_cli.exits import Exit


@click.command(cls=RegistryCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=SERVICE_NAME)
@registry_command(*DATA_FORMATS)
async def command(context: CommandContext, *, names: tuple[str, ...]) -> Exit:
    """Renew the leases of services.

    All names are sent in one call. The exit code is 3 if a service is not registered; the others are renewed.
    """
    response = await context.client.heartbeat(names)
    unknown = list(response.unknown_names)
    if context.out.is_table:
        for name in dict.fromkeys(names):
            if name not in unknown:
                context.out.print_line(f"{name} renewed")
    else:
        context.out.print_document({"renewedCount": response.renewed_count, "unknownNames": unknown})
    for name in unknown:
        context.out.print_error(f"service {name!r} is not registered; register it again")
    return Exit.NOT_FOUND if unknown else Exit.OK
