"""The command ``serve``."""

import sys

import click


@click.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(args: tuple[str, ...]) -> None:
    """Run a registry server; `serve --help` lists its settings."""
    # Imported here, because the other commands must not load the server.
    from registry_server.__main__ import serve as run_server  # noqa: PLC0415

    sys.exit(run_server(args, program="ossa-registry serve"))
