"""The command ``check``."""

from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.commands.health import exit_code_of, show_health
from registry_cli.exits import Exit
from registry_cli.per_name import NAMES, call_for_each_name


@registry_command(*DATA_FORMATS)
@NAMES
async def command(context: CommandContext, *, names: tuple[str, ...]) -> Exit:
    """Probe services now.

    The exit code is 0 if all services are healthy or degraded afterwards, else 7. It follows the status, which
    changes only at the thresholds: after a single failed probe a healthy service remains healthy, and ERROR shows
    the failure.
    """
    outcome = await call_for_each_name(context, names, context.client.check_service_health)
    show_health(context, names, [(name, health, None) for name, health in outcome.results], leases=False)
    return outcome.code or exit_code_of(health for _, health in outcome.results)
