"""``watch``."""

import asyncio
from typing import Any, Final

import click

from registry_cli.calls import DATA, Call, RegistryCommand, talks
from registry_cli.errors import explained
from registry_cli.events import HEADERS, TYPES, event_cells, event_document
from registry_cli.filters import filter_of, filter_options
from registry_cli.output import Cell
from registry_client import Watch

_LOOK: Final = 0.2
"""Seconds between two looks at the connection."""


@click.command(cls=RegistryCommand)
@filter_options
@click.option("--type", "types", type=click.Choice(tuple(TYPES)), multiple=True, help="Only this event; repeat.")
@click.option("--snapshot", is_flag=True, help="First show what is there.")
@click.option("--cursor", default="", help="Go on where another watch with the same filter was ended.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N events, with exit code 0.")
@talks(*DATA)
async def command(
    call: Call, *, types: tuple[str, ...], snapshot: bool, cursor: str, count: int | None, **filters: Any
) -> None:
    """Show every change as it happens, until Ctrl-C.

    JSON is one object a line. A registry that restarts is waited for, and nothing is missed or shown twice; if it
    no longer knows what happened meanwhile, the difference comes, with reason `resync`. At the end, the cursor to
    go on from is told on standard error. It is also in the JSON of each event after which a watch can go on.
    """
    if cursor and snapshot:
        raise click.UsageError("--cursor goes on without a snapshot.")
    wanted = filter_of(filters)
    await call.client.discover_services(wanted, page_size=1)  # who is not there, or refuses the filter, is told at once
    async with call.connection.client(retry=True) as client:
        watch = client.watch(wanted, types=[TYPES[each] for each in types], include_snapshot=snapshot, cursor=cursor)
        connection = asyncio.create_task(_tell_connection(call, watch), name="telling of the connection")
        try:
            await _show(call, watch, count)
        finally:
            connection.cancel()
            await asyncio.wait([connection])


async def _show(call: Call, watch: Watch, count: int | None) -> None:
    """Shows events, and at the end, however it comes, where to go on."""
    if call.out.is_table:
        call.out.columns([(Cell(header, "bold"), width) for header, width in HEADERS])
    good = watch.cursor
    shown = 0
    try:
        async for event in watch:
            if call.out.is_table:
                call.out.columns(list(zip(event_cells(event), (width for _, width in HEADERS), strict=True)))
            else:
                call.out.record(event_document(event, watch.next_cursor))
            good = watch.next_cursor or good
            shown += 1
            if shown == count:
                break
    finally:
        if watch.last_heard and (good := watch.next_cursor or good):
            call.out.remark(f"go on with --cursor {good}")


async def _tell_connection(call: Call, watch: Watch) -> None:
    """Tells when the registry goes away and when it is back; the watch itself says nothing of it."""
    away = False
    while True:
        await asyncio.sleep(_LOOK)
        if watch.last_error is not None and not away:
            away = True
            why = explained(watch.last_error, call.client.target).removesuffix("; is it running?")
            call.out.remark(f"{why}; waiting for it")
        elif watch.connected and away:
            away = False
            call.out.remark("connected again")
