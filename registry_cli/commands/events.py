"""The command ``events``."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

from registry_cli.calls import DATA_FORMATS, CommandContext, registry_command
from registry_cli.completion import SERVICE_NAME
from registry_cli.events import COLUMNS, event_cells, event_document
from registry_cli.recent import newest_events

_PERIOD: Final = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _parse_since(_context: click.Context, _parameter: click.Parameter, text: str | None) -> timedelta | datetime | None:
    if text is None:
        return None
    if period := _PERIOD.fullmatch(text):
        return timedelta(seconds=int(period[1]) * _SECONDS[period[2]])
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a period such as 24h nor a time in ISO 8601") from None
    return moment.astimezone(UTC)


@registry_command(*DATA_FORMATS)
@click.argument("name", required=False, default="", type=SERVICE_NAME)
@click.option("--since", metavar="TIME", callback=_parse_since, help="Period such as 24h, or time; default: all.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Newest events.")
async def command(context: CommandContext, *, name: str, since: timedelta | datetime | None, limit: int) -> None:
    """Show past events of a service, or of all.

    \b
    ossa-registry events translator --since 24h

    NAME need not be registered. The newest event is last. The registry keeps as many events as its setting
    redis.events_max_length says.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    if isinstance(since, timedelta):
        since = await context.registry_time() - since
    events, oldest = await newest_events(context.client, name, limit, since)
    if not context.out.is_table:
        context.out.print_document([event_document(event, "") for event in events])
    elif events:
        rows = [event_cells(event, with_date=True) for event in events]
        context.out.print_table([header for header, _ in COLUMNS], rows)
    else:
        context.out.print_notice(f"no event is kept; the oldest of any service is that of revision {oldest}")
