"""The command ``run``."""

from collections.abc import Sequence

import click

from registry_cli.agent import run_agent
from registry_cli.calls import CommandContext, registry_command
from registry_cli.exits import Exit, Failure
from registry_cli.files import print_invalid, read_services


@registry_command("table", context_settings={"allow_interspersed_args": False})
@click.argument("command_line", metavar="COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "-f", "--file", "files", multiple=True, required=True, help="YAML or JSON file with the service; repeatable."
)
@click.option("--replicas", is_flag=True, help="Register under a unique name in the group of the service's name.")
@click.option(
    "--drain",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    default=0.0,
    help="Time between the end of new calls and the signal to the command.  [default: 0]",
)
async def command(
    context: CommandContext, *, command_line: Sequence[str], files: Sequence[str], replicas: bool, drain: float
) -> int:
    """Run a program as an agent: registered while it runs.

    \b
    ossa-registry run -f agent.yaml -- python agent.py --port 8080
    ossa-registry run -f agent.yaml --drain 5 -- ./agent

    The service is registered when its endpoint accepts connections, its lease is renewed, and it is unregistered when
    the command has ended. At SIGTERM or Ctrl-C the service drains for --drain seconds before the command receives the
    signal; a second one ends the drain. Other signals are forwarded immediately. The exit code is that of the command,
    128 + N if signal N ended it.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    inputs, failures = read_services(files)
    if failures:
        raise Failure("\n".join(failure.message for failure in failures), Exit.USAGE)
    if print_invalid(context.out, inputs):
        return Exit.USAGE
    return await run_agent(context, [each.service for each in inputs], command_line, replicas=replicas, drain=drain)
