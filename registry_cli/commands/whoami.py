"""The command ``whoami``."""

from datetime import UTC

from ossa_common.json_writer import message_document
from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.exits import Failure


@registry_command(*DATA_FORMATS)
async def command(context: CommandContext) -> None:
    """Show how the registry identifies the caller.

    Without a policy every caller is anonymous with the role admin.
    """
    health = await context.client.get_registry_health()
    if not health.HasField("caller"):
        raise Failure(f"the registry at {context.client.target} is of a version that does not report its callers")
    caller = health.caller
    if not context.out.is_table:
        context.out.print_document(message_document(caller))
        return
    rows = [("identity", caller.identity), ("role", caller.role), ("credential", caller.method)]
    if caller.patterns:
        rows.append(("may own", ",".join(caller.patterns)))
    if caller.HasField("expires_at"):
        rows.append(("expires", f"{caller.expires_at.ToDatetime(UTC):%Y-%m-%d %H:%M:%S} UTC"))
    context.out.print_rows(rows)
