"""``unregister``."""

import click

from registry_cli.calls import NAMED, Call, RegistryCommand, talks
from registry_cli.completion import NAME
from registry_cli.documents import document
from registry_cli.exits import Exit
from registry_cli.several import each
from registry_client import Service, ServiceNotFound


@click.command(cls=RegistryCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NAME)
@click.option("--if-revision", type=click.IntRange(1), metavar="N", help="Only if it is at this revision; one name.")
@click.option("--ignore-not-found", is_flag=True, help="A name that is not registered is no failure.")
@talks(*NAMED)
async def command(call: Call, *, names: tuple[str, ...], if_revision: int | None, ignore_not_found: bool) -> Exit:
    """Remove services.

    JSON and YAML show the last state: one object for one name, an array for several.
    """
    if if_revision is not None and len(names) > 1:
        raise click.UsageError("--if-revision goes with one name: services have revisions of their own.")

    async def remove(name: str) -> Service | None:
        try:
            return await call.client.unregister_service(name, expected_revision=if_revision or 0)
        except ServiceNotFound:
            if ignore_not_found:
                return None
            raise

    found = await each(call, names, remove)
    removed = [service for _, service in found.results if service is not None]
    if call.out.is_table:
        for service in removed:
            call.out.line(f"{service.name} unregistered")
    elif call.out.format == "name":
        call.out.names(service.name for service in removed)
    elif len(names) > 1:
        call.out.data([document(service) for service in removed])
    elif removed:
        call.out.data(document(removed[0]))
    return found.code
