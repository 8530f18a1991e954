"""The command ``version``."""

import platform
from importlib.metadata import version

import click

from registry_cli.output import Output


@click.command()
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
def command(*, output: str) -> None:
    """Show the versions of ossa-registry, Python and grpcio."""
    out = Output(output, color=False, quiet=False)  # type: ignore[arg-type] # click.Choice returns one of these
    versions = {
        "ossa-registry": version("ossa-registry"),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
    }
    if out.is_table:
        out.print_rows(versions.items())
    else:
        out.print_document(versions)
