"""The command ``cleanup``."""

import click

from registry_cli.calls import DATA_AND_NAME_FORMATS, CommandContext, RegistryCommand, registry_command


@click.command(cls=RegistryCommand)
@registry_command(*DATA_AND_NAME_FORMATS)
async def command(context: CommandContext) -> None:
    """Remove services whose lease has expired.

    The registry does this automatically within about a second; this command does it immediately.
    """
    names = await context.client.cleanup()
    if context.out.is_table:
        for name in names:
            context.out.print_line(f"{name} removed")
        context.out.print_notice(f"services removed: {len(names)}")
    elif context.out.format == "name":
        context.out.print_names(names)
    else:
        context.out.print_document({"servicesRemoved": len(names), "names": names})
