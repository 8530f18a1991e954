"""``stats``."""

import click

from registry_cli.calls import DATA, Call, RegistryCommand, talks
from registry_cli.documents import document


@click.command(cls=RegistryCommand)
@talks(*DATA)
async def command(call: Call) -> None:
    """Count what is registered."""
    stats = await call.client.get_stats()
    if not call.out.is_table:
        call.out.data(document(stats))
        return
    call.out.facts(
        (
            ("services", str(stats.total_services)),
            ("  healthy", str(stats.healthy_services)),
            ("  degraded", str(stats.degraded_services)),
            ("  unhealthy", str(stats.unhealthy_services)),
            ("  unknown", str(stats.unknown_services)),
            ("  in maintenance", str(stats.services_in_maintenance)),
            ("versions of services", str(stats.unique_versions)),
            ("tags", str(stats.unique_tags)),
            ("capabilities", str(stats.total_capabilities)),
            ("  distinct", str(stats.unique_capabilities)),
            ("  a service", f"{stats.average_capabilities_per_service:.2f}"),
        )
    )
