"""The command ``list``."""

from typing import Any

import click

from registry_cli.calls import ALL_FORMATS, CommandContext, registry_command
from registry_cli.explanations import empty_result_text
from registry_cli.filters import filter_options, pop_filter
from registry_cli.services import show_services
from registry_client import Consistency, Service

_MAX_PAGE_SIZE = 1_000


@registry_command(*ALL_FORMATS)
@filter_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N by name; default: all.")
@click.option("--strong", is_flag=True, help="Wait until all writes committed before this call are visible.")
async def command(context: CommandContext, *, limit: int | None, strong: bool, **filters: Any) -> None:
    """List services that match a filter."""
    service_filter = pop_filter(filters)
    consistency = Consistency.CONSISTENCY_STRONG if strong else Consistency.CONSISTENCY_EVENTUAL
    found: list[Service] = []
    token, stale = "", False
    while True:
        size = _MAX_PAGE_SIZE if limit is None else min(_MAX_PAGE_SIZE, limit - len(found))
        page = await context.client.discover_services(
            service_filter, page_size=size, page_token=token, consistency=consistency
        )
        found += page.services
        token, stale = page.next_page_token, stale or page.stale
        if not token or len(found) == limit:
            break
    show_services(context.out, found)
    if stale:
        context.out.print_notice("the registry cannot reach its store: the list may be stale")
    if not found and context.out.is_table:
        context.out.print_notice(await empty_result_text(context, service_filter))
