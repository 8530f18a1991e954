"""The command ``cleanup``."""

from registry_cli.calls import DATA_AND_NAME_FORMATS, CommandContext, registry_command


@registry_command(*DATA_AND_NAME_FORMATS)
async def command(context: CommandContext) -> None:
    """Remove services whose lease has expired.

    The registry does this automatically within about a second; this command does it immediately.
    """
    names = await context.client.cleanup()
    if context.out.is_table:
        context.out.print_lines(f"{name} removed" for name in names)
        context.out.print_notice(f"services removed: {len(names)}")
    elif context.out.format == "name":
        context.out.print_lines(names)
    else:
        context.out.print_document({"servicesRemoved": len(names), "names": names})
