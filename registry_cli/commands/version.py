"""``version``."""

import platform
from importlib.metadata import version

import click

from registry_cli.output import Output


@click.command()
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
def command(*, output: str) -> None:
    """Show the versions of this program and of what it runs on."""
    out = Output(output, color=False, quiet=False)  # type: ignore[arg-type] # Choice gives one of these
    versions = {
        "ossa-registry": version("ossa-registry"),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
    }
    if out.is_table:
        out.facts(versions.items())
    else:
        out.data(versions)
