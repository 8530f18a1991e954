"""The command ``backup``."""

from collections.abc import Sequence

import click

from registry_cli.data import SETTINGS, run_on_data, summary_line


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("file")
@SETTINGS
def command(file: str, settings: Sequence[str]) -> None:
    """Write all services of a registry to a file.

    \b
    ossa-registry backup registry.backup
    ossa-registry backup registry.backup --redis.url redis://10.0.0.2
    ossa-registry backup - --data-dir /var/lib/ossa-registry > registry.backup

    The command reads Redis, embedded or not, with the settings of `serve`: flags, environment and --config. The
    registry may be running. The backup is the state of one revision; with owners, leases and newest health.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    summary = run_on_data("back_up", settings, file)
    click.echo(summary_line(summary, f"backed up from {summary.redis}"), err=file == "-")
