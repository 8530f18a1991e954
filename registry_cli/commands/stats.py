"""The command ``stats``."""

from ossa_common.json_writer import message_document
from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command


@registry_command(*DATA_FORMATS)
async def command(context: CommandContext) -> None:
    """Show counts of services, capabilities, versions and tags."""
    stats = await context.client.get_stats()
    if not context.out.is_table:
        context.out.print_document(message_document(stats))
        return
    context.out.print_rows(
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
            ("  per service", f"{stats.average_capabilities_per_service:.2f}"),
        )
    )
