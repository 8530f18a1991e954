"""The command ``get``."""

from registry_cli.calls import ALL_FORMATS, CommandContext, registry_command
from registry_cli.exits import Exit
from registry_cli.explanations import print_reasons
from registry_cli.per_name import NAMES, call_for_each_name
from registry_cli.services import show_services


@registry_command(*ALL_FORMATS)
@NAMES
async def command(context: CommandContext, *, names: tuple[str, ...]) -> Exit:
    """Show services by name.

    JSON and YAML output is an object for one name, an array for several; `register -f` accepts both.
    """
    outcome = await call_for_each_name(context, names, context.client.get_service)
    if outcome.results:
        show_services(context.out, [service for _, service in outcome.results], single=len(names) == 1)
    found = [name for name, _ in outcome.results]
    if outcome.code is Exit.NOT_FOUND:
        await print_reasons(context, [name for name in dict.fromkeys(names) if name not in found])
    return outcome.code
