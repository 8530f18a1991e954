"""``check``."""

import click

from registry_cli.calls import DATA, Call, RegistryCommand, talks
from registry_cli.commands.health import show_health, verdict
from registry_cli.completion import NAME
from registry_cli.exits import Exit
from registry_cli.several import each


@click.command(cls=RegistryCommand)
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=NAME)
@talks(*DATA)
async def command(call: Call, *, names: tuple[str, ...]) -> Exit:
    """Let the registry probe services now.

    The exit code is 0 if all are healthy or degraded after that, else 7. The status counts, and thresholds move it:
    a healthy service that does not answer once stays healthy, and ERROR says what the probe met.
    """
    found = await each(call, names, call.client.check_service_health)
    show_health(call, names, [(name, health, None) for name, health in found.results], leases=False)
    return found.code or verdict(health for _, health in found.results)
