"""``cleanup``."""

import click

from registry_cli.calls import NAMED, Call, RegistryCommand, talks


@click.command(cls=RegistryCommand)
@talks(*NAMED)
async def command(call: Call) -> None:
    """Remove services whose lease has ended.

    The registry does so by itself within a second or so; this is for those who cannot wait.
    """
    names = await call.client.cleanup()
    if call.out.is_table:
        for name in names:
            call.out.line(f"{name} removed")
        call.out.remark(f"{len(names)} removed")
    elif call.out.format == "name":
        call.out.names(names)
    else:
        call.out.data({"servicesRemoved": len(names), "names": names})
