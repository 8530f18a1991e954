"""The newest events of a service, from those that the registry keeps to resume watches."""

import asyncio
import re
from typing import Final

from ossa_common.cursors import decode_cursor, encode_cursor
from registry_cli.calls import CommandContext
from registry_client import CursorExpired, Event, RegistryError, Service, Watch

_REVISIONS: Final = (10_000, 1_000, 100)
"""How many revisions to go back; the registry keeps 10,000 by default, less if they are large."""


async def recent_events(context: CommandContext, service: Service, count: int) -> list[Event]:
    """Return up to ``count`` of the newest events of a service, oldest first; fewer if the registry keeps no more."""
    pattern = f"^{re.escape(service.name)}$"
    try:
        async with asyncio.timeout(context.connection.timeout):
            async with context.client.watch(name_pattern=pattern) as watch:
                while not watch.complete:
                    await watch.next_events()
                newest = decode_cursor(watch.next_cursor)
            for revisions in _REVISIONS:
                start = max(newest.revision - revisions, 0)
                cursor = encode_cursor(newest._replace(revision=start))
                try:
                    async with context.client.watch(name_pattern=pattern, cursor=cursor) as watch:
                        return (await _events_until(watch, service, start))[-count:]
                except CursorExpired:
                    continue
    except (TimeoutError, ValueError, RegistryError):
        pass  # the events are an extra
    return []


async def _events_until(watch: Watch, service: Service, start: int) -> list[Event]:
    events: list[Event] = []
    newest = start
    while newest < service.revision:
        for event in await watch.next_events():
            if event.service.name == service.name:  # patterns ignore the case
                events.append(event)
                newest = event.revision
    return events
