"""The command ``watch``."""

import asyncio
from typing import Any, Final

import click

from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.errors import error_text
from registry_cli.events import COLUMNS, EVENT_TYPES, event_cells, event_document
from registry_cli.filters import filter_options, pop_filter
from registry_cli.output import Cell
from registry_client import Watch

_CONNECTION_POLL_SECONDS: Final = 0.2


@registry_command(*DATA_FORMATS)
@filter_options
@click.option(
    "--type",
    "types",
    type=click.Choice(tuple(EVENT_TYPES)),
    multiple=True,
    help="Only events of this type; repeatable.",
)
@click.option("--snapshot", is_flag=True, help="Show the existing services first.")
@click.option("--cursor", default="", help="Resume where an earlier watch with the same filter ended.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Exit after N events, with code 0.")
async def command(
    context: CommandContext, *, types: tuple[str, ...], snapshot: bool, cursor: str, count: int | None, **filters: Any
) -> None:
    """Show every change as it happens, until Ctrl-C.

    JSON output is one object per line. The watch reconnects after a restart of the registry, without missing or
    repeating events; if the registry no longer holds the missed events, the difference is shown with the reason
    `resync`. At the end, the cursor for --cursor is printed to standard error. In JSON, each event after which a watch
    can resume also contains it.
    """
    if cursor and snapshot:
        raise click.UsageError("--cursor cannot be combined with --snapshot.")
    service_filter = pop_filter(filters)
    await context.client.discover_services(service_filter, page_size=1)  # fails immediately, unlike a watch
    async with context.connection.create_client(retry=True) as client:
        watch = client.watch(
            service_filter, types=[EVENT_TYPES[each] for each in types], include_snapshot=snapshot, cursor=cursor
        )
        reporter = asyncio.create_task(_report_connection(context, watch), name="reporting the connection")
        try:
            await _show_events(context, watch, count)
        finally:
            reporter.cancel()
            await asyncio.wait([reporter])


async def _show_events(context: CommandContext, watch: Watch, count: int | None) -> None:
    """Print events and, when the command ends for any reason, the cursor to resume from."""
    if context.out.is_table:
        context.out.print_row([(Cell(header, "bold"), width) for header, width in COLUMNS])
    resume_cursor = watch.cursor
    shown = 0
    try:
        async for event in watch:
            if context.out.is_table:
                context.out.print_row(list(zip(event_cells(event), (width for _, width in COLUMNS), strict=True)))
            else:
                context.out.print_record(event_document(event, watch.next_cursor))
            resume_cursor = watch.next_cursor or resume_cursor
            shown += 1
            if shown == count:
                break
    finally:
        if watch.last_heard and (resume_cursor := watch.next_cursor or resume_cursor):
            context.out.print_notice(f"resume with --cursor {resume_cursor}")


async def _report_connection(context: CommandContext, watch: Watch) -> None:
    """Print a notice when the watch loses its connection, and when it has reconnected."""
    disconnected = False
    while True:
        await asyncio.sleep(_CONNECTION_POLL_SECONDS)
        if watch.last_error is not None and not disconnected:
            disconnected = True
            cause = error_text(watch.last_error, context.client.target).removesuffix("; is it running?")
            context.out.print_notice(f"{cause}; reconnecting")
        elif watch.connected and disconnected:
            disconnected = False
            context.out.print_notice("reconnected")
