"""The command ``restore``."""

from collections.abc import Sequence

import click

from registry_cli.data import SETTINGS, run_on_data, summary_line


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("file")
@click.option("--replace", is_flag=True, help="Replace the services that Redis holds.")
@SETTINGS
def command(file: str, settings: Sequence[str], *, replace: bool) -> None:
    """Store the services of a backup in a Redis, embedded or not.

    \b
    ossa-registry restore registry.backup
    ossa-registry restore registry.backup --redis.url redis://10.0.0.2

    Stop all processes of the registry before, and start them afterwards. Agents then have as much time to send a
    heartbeat as they had at the backup. Watches start over.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    summary = run_on_data("restore", settings, file, replace=replace)
    click.echo(summary_line(summary, f"restored to {summary.redis}"))
