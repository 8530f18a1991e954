"""``list``."""

from typing import Any

import click

from registry_cli.calls import ALL, Call, RegistryCommand, talks
from registry_cli.filters import filter_of, filter_options
from registry_cli.services import show_services
from registry_client import Consistency, Service

_LARGEST_PAGE = 1_000


@click.command(cls=RegistryCommand)
@filter_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N by name; without it, all.")
@click.option("--strong", is_flag=True, help="Wait for all that was committed before, in whichever process.")
@talks(*ALL)
async def command(call: Call, *, limit: int | None, strong: bool, **filters: Any) -> None:
    """List the services that match."""
    wanted = filter_of(filters)
    consistency = Consistency.CONSISTENCY_STRONG if strong else Consistency.CONSISTENCY_EVENTUAL
    found: list[Service] = []
    token, stale = "", False
    while True:
        size = _LARGEST_PAGE if limit is None else min(_LARGEST_PAGE, limit - len(found))
        page = await call.client.discover_services(wanted, page_size=size, page_token=token, consistency=consistency)
        found += page.services
        token, stale = page.next_page_token, stale or page.stale
        if not token or len(found) == limit:
            break
    show_services(call.out, found)
    if stale:
        call.out.remark("the registry does not reach its store: what is shown may be behind")
    if not found and call.out.is_table:
        call.out.remark("no service matches")
