"""``EventLog``: the events that are kept, the newest in memory and older ones in the store."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from registry_server.catalog import Change, Replica, Slices, WatchEvent
from registry_server.catalog.discovery import MAX_PAGE_BYTES
from registry_server.errors import Overloaded, StoreUnavailable
from registry_server.model.filters import Filter
from registry_server.model.wire import bytes_field, integer_field
from registry_server.replication.changes import change_from_event
from registry_server.runtime.fair_slots import FairSlots, TooManyWaiters
from registry_server.security.identity import current_caller_key
from registry_server.store import DamagedEvent, StoredEvent, StoreReader
from registry_server.watch.groups import match_event

# Fields of ListEventsResponse; `events` (1) is how an event is framed.
_NEXT_PAGE_TOKEN, _OLDEST_REVISION = 2, 3

_MAX_EXAMINED: Final = 5_000
"""Events in memory or in the store that one call looks at, so that it ends in bounded time."""
_FIRST_READ: Final = 50
_MAX_READ: Final = 500
"""Events per read of the store."""
_READ_BYTES: Final = 1 << 20
"""Size of a read of the store; others wait for its round trip."""
_STEP_CHANGES: Final = 200
_MAX_WAITING: Final = 1_000


@dataclass(slots=True)
class EventPage:
    """Some of the kept events, newest first."""

    events: list[WatchEvent] = field(default_factory=list)
    oldest_revision: int = 0
    """Revision of the oldest event that is kept."""
    next_revision: int = 0
    """Revision before which the next page begins; 0 = this is the last page."""
    next_page_token: str = ""
    size: int = 0
    """Size of the events in bytes."""

    def has_room(self, query: "EventQuery") -> bool:
        """Return whether further events may be added."""
        return len(self.events) < query.size and self.size < MAX_PAGE_BYTES

    def wire(self) -> bytes:
        """Return the page as a serialised ``ListEventsResponse``."""
        token = bytes_field(_NEXT_PAGE_TOKEN, self.next_page_token.encode()) if self.next_page_token else b""
        frames = b"".join(event.frame for event in self.events)
        return frames + token + integer_field(_OLDEST_REVISION, self.oldest_revision)


@dataclass(slots=True, kw_only=True)
class EventQuery:
    """The events that a page shows."""

    filter: Filter
    """Services that the caller sees."""
    name: str
    """Service that the events are about; empty = all."""
    since_ms: int
    """Time of the oldest event, in milliseconds since the epoch."""
    size: int
    """Maximum number of events."""


class EventLog:
    """Reads the kept events: of memory without Redis, of the store in turns for each caller."""

    def __init__(self, replica: Replica, reader: StoreReader, slices: Slices) -> None:
        self._replica = replica
        self._reader = reader
        self._slices = slices
        self._slots = FairSlots(1, _MAX_WAITING)
        self._read_count = _FIRST_READ

    async def read_page(self, query: EventQuery, before: int) -> EventPage:
        """Return the newest events before a revision.

        Raises:
            StoreUnavailable: They are not in memory, and the store does not respond.
        """
        history = self._replica.history
        page = EventPage(next_revision=before)
        oldest = history.oldest
        kept = history.since(oldest.revision - 1) if oldest is not None else None
        changes = kept[: max(before - kept[0].revision, 0)] if kept else ()  # they have consecutive revisions
        await self._slices.run(_select(query, reversed(changes[-_MAX_EXAMINED:]), page))
        examined = min(len(changes), _MAX_EXAMINED)
        try:
            while page.next_revision > 1 and page.has_room(query) and examined < _MAX_EXAMINED:
                examined += await self._read_older(query, page)
            stored_from, _ = await self._reader.read_oldest_event()
        except StoreUnavailable:
            if not changes:
                raise
            stored_from = 0
        # The stream may hold less than this process: another program has trimmed it, or it was restored.
        kept_from = oldest.revision if oldest else stored_from
        page.oldest_revision = min(stored_from or kept_from, kept_from)
        if page.next_revision <= page.oldest_revision:
            page.next_revision = 0
        return page

    async def _read_older(self, query: EventQuery, page: EventPage) -> int:
        """Add events of the store; return how many were examined. The last ones end the page."""
        try:
            async with self._slots.slot(current_caller_key()):
                stored = await self._reader.read_events_before(page.next_revision, self._read_count)
        except TooManyWaiters:
            raise Overloaded("history", _MAX_WAITING, "too many calls are waiting to read events") from None
        if not stored:
            page.next_revision = 0
            return 0
        size = sum(len(event.after) + len(event.before) for event in stored) // len(stored)
        self._read_count = max(min(_READ_BYTES // (size or 1), _MAX_READ), 1)
        await self._slices.run(_select(query, _changes(query, stored, page), page))
        return len(stored)


def _changes(query: EventQuery, stored: list[StoredEvent], page: EventPage) -> Iterator[Change]:
    """Yield the stored changes that a query may be about; those of other services are not decoded."""
    for event in stored:
        if query.name and event.name != query.name:
            page.next_revision = event.revision
            continue
        try:
            yield change_from_event(event, None)
        except DamagedEvent:
            page.next_revision = event.revision


def _select(query: EventQuery, changes: Iterator[Change], page: EventPage) -> Iterator[None]:
    """Add the events of changes, newest first, until the page is full; yield in between."""
    for examined, change in enumerate(changes):
        if not page.has_room(query):
            return
        if change.at_ms < query.since_ms:
            page.next_revision = 0
            return
        if not query.name or change.name == query.name:
            event = match_event(query.filter, change)
            if event is not None:
                if page.events and page.size + len(event.frame) > MAX_PAGE_BYTES:
                    page.size = MAX_PAGE_BYTES
                    return
                page.events.append(event)
                page.size += len(event.frame)
            yield
        elif examined % _STEP_CHANGES == 0:
            yield
        page.next_revision = change.revision
