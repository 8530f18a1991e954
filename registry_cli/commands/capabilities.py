"""The command ``capabilities``."""

from ossa_common.json_writer import message_document
from registry_cli.calls import ALL_FORMATS, CommandContext, registry_command
from registry_cli.output import shorten_list

_MAX_SHOWN = 3


@registry_command(*ALL_FORMATS)
async def command(context: CommandContext) -> None:
    """List the capabilities of all services."""
    capabilities = await context.client.list_capabilities()
    if context.out.is_table:
        limit = 0 if context.out.wide else _MAX_SHOWN
        context.out.print_table(
            ("CAPABILITY", "VERSIONS", "COUNT", "SERVICES", "DESCRIPTION"),
            [
                (
                    each.name,
                    shorten_list(each.versions, limit),
                    str(each.service_count),
                    shorten_list(each.service_names, limit),
                    each.description,
                )
                for each in capabilities
            ],
        )
    elif context.out.format == "name":
        context.out.print_lines(each.name for each in capabilities)
    else:
        context.out.print_document([message_document(each) for each in capabilities])
