"""The command ``search``."""

from typing import Any

import click

from ossa_common.json_writer import message_document
from registry_cli.calls import ALL_FORMATS, CommandContext, registry_command
from registry_cli.filters import filter_options, pop_filter
from registry_cli.output import Cell, shorten_list
from registry_cli.services import health_cell


@registry_command(*ALL_FORMATS)
@click.argument("words", nargs=-1, required=True)
@filter_options
@click.option("--limit", type=click.IntRange(1, 100), default=10, metavar="N", help="The best N; default: 10.")
async def command(context: CommandContext, *, words: tuple[str, ...], limit: int, **filters: Any) -> None:
    """Find services by words in their descriptions.

    \b
    ossa-registry search translate contracts
    ossa-registry search summarise --environment production --available

    The best come first: those that are available before all others, then by relevance (SCORE, 1 to 100). Other forms
    of a word, its beginning and one wrong letter match, too.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    out = context.out
    found = await context.client.search_services(" ".join(words), pop_filter(filters), limit=limit)
    if out.format == "name":
        out.print_lines(result.service.name for result in found.results)
    elif not out.is_table:
        out.print_documents([message_document(result) for result in found.results], single=False)
    else:
        rows: list[list[str | Cell]] = [
            [
                result.service.name,
                f"{result.score:.0f}",
                health_cell(result.service.health),
                shorten_list(list(result.matched_capabilities), 0 if out.wide else 3),
                result.service.metadata.description,
            ]
            for result in found.results
        ]
        out.print_table(["NAME", "SCORE", "HEALTH", "MATCHES", "DESCRIPTION"], rows)
    if found.stale:
        out.print_notice("the registry cannot reach its store, or has just started: services may be missing")
    if not found.results and out.is_table:
        out.print_notice("no service has these words; `ossa-registry capabilities` lists what is offered")
