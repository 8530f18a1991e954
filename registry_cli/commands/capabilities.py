"""``capabilities``."""

import click

from registry_cli.calls import ALL, Call, RegistryCommand, talks
from registry_cli.documents import document
from registry_cli.output import several

_SHOWN = 3


@click.command(cls=RegistryCommand)
@talks(*ALL)
async def command(call: Call) -> None:
    """List what services can do."""
    found = await call.client.list_capabilities()
    if call.out.is_table:
        shown = 0 if call.out.wide else _SHOWN
        call.out.table(
            ("CAPABILITY", "VERSIONS", "COUNT", "SERVICES", "DESCRIPTION"),
            [
                (
                    each.name,
                    several(each.versions, shown),
                    str(each.service_count),
                    several(each.service_names, shown),
                    each.description,
                )
                for each in found
            ],
        )
    elif call.out.format == "name":
        call.out.names(each.name for each in found)
    else:
        call.out.data([document(each) for each in found])
