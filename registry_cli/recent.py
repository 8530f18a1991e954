"""The newest events, from those that the registry keeps."""

from datetime import datetime

from registry_client import Event, RegistryClient

_MAX_PAGE_SIZE = 1_000


async def newest_events(
    client: RegistryClient, name: str, limit: int, since: datetime | None = None
) -> tuple[list[Event], int]:
    """Return up to ``limit`` of the newest events, oldest first, and the oldest revision that is kept.

    Args:
        client: Client of the registry.
        name: Service that the events are about; empty = all services.
        limit: Maximum number of events.
        since: Time of the oldest event.
    """
    events: list[Event] = []
    token = ""
    while True:
        size = min(limit - len(events), _MAX_PAGE_SIZE)
        page = await client.list_events(name, since=since, page_size=size, page_token=token)
        events += page.events
        token = page.next_page_token
        if not token or len(events) >= limit:
            return events[::-1], page.oldest_revision
