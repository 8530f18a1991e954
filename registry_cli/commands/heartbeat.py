"""The command ``heartbeat``."""

from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.exits import Exit
from registry_cli.per_name import NAMES


@registry_command(*DATA_FORMATS)
@NAMES
async def command(context: CommandContext, *, names: tuple[str, ...]) -> Exit:
    """Renew the leases of services.

    All names are sent in one call. The exit code is 3 if a service is not registered; the others are renewed.
    """
    response = await context.client.heartbeat(names)
    unknown = list(response.unknown_names)
    if context.out.is_table:
        context.out.print_lines(f"{name} renewed" for name in dict.fromkeys(names) if name not in unknown)
    else:
        context.out.print_document({"renewedCount": response.renewed_count, "unknownNames": unknown})
    for name in unknown:
        context.out.print_error(f"service {name!r} is not registered; register it again")
    return Exit.NOT_FOUND if unknown else Exit.OK
