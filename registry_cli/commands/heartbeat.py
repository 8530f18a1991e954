"""``heartbeat``."""

import click

from registry_cli.calls import DATA, Call, RegistryCommand, talks
from registry_cli.completion import NAME
from registry_cli.exits import Exit


@click.command(cls=RegistryCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NAME)
@talks(*DATA)
async def command(call: Call, *, names: tuple[str, ...]) -> Exit:
    """Renew the leases of services.

    All names go in one call. The exit code is 3 if one of them is not registered; the others are renewed.
    """
    answer = await call.client.heartbeat(names)
    unknown = list(answer.unknown_names)
    if call.out.is_table:
        for name in dict.fromkeys(names):
            if name not in unknown:
                call.out.line(f"{name} renewed")
    else:
        call.out.data({"renewedCount": answer.renewed_count, "unknownNames": unknown})
    for name in unknown:
        call.out.error(f"service {name!r} is not registered; register it again")
    return Exit.NOT_FOUND if unknown else Exit.OK
