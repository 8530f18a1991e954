"""The command ``explain``."""

from typing import Any

import click

from ossa_common.json_writer import message_document
from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.completion import SERVICE_NAME
from registry_cli.filters import filter_options, pop_filter


@registry_command(*DATA_FORMATS)
@click.argument("service", metavar="[NAME]", required=False, default="", type=SERVICE_NAME)
@filter_options
async def command(context: CommandContext, *, service: str, **filters: Any) -> None:
    """Explain why a filter or a name finds nothing.

    \b
    ossa-registry explain --capability translate --capability-version '^2'
    ossa-registry explain translator --environment production
    ossa-registry explain translater

    With a filter and NAME: why NAME is not in the result. NAME need not be registered: for one that has left, the
    answer is when and why. The table shows how many services meet each condition on its own.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    explanation = await context.client.explain_discovery(pop_filter(filters), name=service)
    if not context.out.is_table:
        context.out.print_document(message_document(explanation))
        return
    context.out.print_line(explanation.summary)
    if explanation.conditions:
        context.out.print_line("")
        headers = ["CONDITION", "WANTED", "SERVICES", "NEAREST", *(["ACTUAL"] if explanation.found else [])]
        rows = [
            [
                each.field,
                each.wanted,
                str(each.matching_count),
                ", ".join(each.nearest),
                *([each.actual] if explanation.found else []),
            ]
            for each in explanation.conditions
        ]
        context.out.print_table(headers, rows)
