"""Commands of ``ossa-registry``."""

import sys

import click

from registry_cli.keys import keys


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ossa-registry")
def main() -> None:
    """Service registry for fleets of AI agents."""


main.add_command(keys)


@main.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def serve(args: tuple[str, ...]) -> None:
    """Run a registry server; `serve --help` lists its settings."""
    # Late: every other command works without the server and must not wait until it is loaded.
    from registry_server.__main__ import serve as run_server  # noqa: PLC0415

    sys.exit(run_server(args, program="ossa-registry serve"))
