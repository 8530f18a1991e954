"""The command ``unregister``."""

import click

from registry_cli.calls import DATA_AND_NAME_FORMATS, CommandContext, registry_command
from registry_cli.exits import Exit
from registry_cli.per_name import NAMES, call_for_each_name
from registry_cli.services import show_services
from registry_client import Service, ServiceNotFound


@registry_command(*DATA_AND_NAME_FORMATS)
@NAMES
@click.option(
    "--if-revision", type=click.IntRange(1), metavar="N", help="Only at this revision; requires a single NAME."
)
@click.option("--ignore-not-found", is_flag=True, help="Do not fail for names that are not registered.")
async def command(
    context: CommandContext, *, names: tuple[str, ...], if_revision: int | None, ignore_not_found: bool
) -> Exit:
    """Unregister services.

    JSON and YAML output is the last state of the services: an object for one name, an array for several.
    """
    if if_revision is not None and len(names) > 1:
        raise click.UsageError("--if-revision requires a single NAME: each service has its own revision.")

    async def remove(name: str) -> Service | None:
        try:
            return await context.client.unregister_service(name, expected_revision=if_revision or 0)
        except ServiceNotFound:
            if ignore_not_found:
                return None
            raise

    outcome = await call_for_each_name(context, names, remove)
    removed = [service for _, service in outcome.results if service is not None]
    lines = [f"{service.name} unregistered" for service in removed]
    show_services(context.out, removed, single=len(names) == 1, lines=lines)
    return outcome.code
