"""``read_state``: reads the whole state of the store, for the first load and for a resync."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from registry_server.catalog.change import Change
from registry_server.errors import StoreUnavailable
from registry_server.model.record import Record
from registry_server.replication.changes import change_from_event, merge_changes, read_record
from registry_server.runtime.pacing import Turn
from registry_server.store import DamagedEvent, Position, RedisStore, StoredEvent, StoreReader


class State(NamedTuple):
    """The state of the store at one position."""

    records: list[Record]
    past: Sequence[Change]
    """The changes that led to it, without a gap."""
    position: Position
    owners: dict[str, str]
    """Service name to owner."""
    newest: StoredEvent | None
    """The last event of ``past``, as stored."""
    damaged: frozenset[str]
    """Names whose records cannot be decoded."""


async def read_state(
    reader: StoreReader, read_head: Callable[[], Awaitable[Position]], held: Mapping[str, Record], history_length: int
) -> State:
    """Return a consistent state, read without blocking the store.

    Records are read in pages while changes continue; the stream since the first page then completes them.

    Args:
        reader: Reader of the store.
        read_head: Returns the newest position.
        held: Records that replace damaged ones.
        history_length: Number of past changes to read; the stream may hold more.
    """
    while True:
        low = await read_head()
        if not low.epoch:
            raise StoreUnavailable("the store is being repaired")
        records, damaged = await _read_records(reader, held)
        owners = await reader.read_owners()
        high = await reader.read_position()
        start = min(low.revision, high.revision - history_length) + 1
        past, newest = await _read_past(reader, high, start)
        first = past[0].revision if past else high.revision + 1
        if high.epoch != low.epoch or first > low.revision + 1:
            continue  # events were trimmed from the stream during the read
        merge_changes(records, owners, [change for change in past if change.revision > low.revision])
        return State(list(records.values()), past, high, owners, newest, frozenset(damaged - records.keys()))


async def start_retention(store: RedisStore, past: Sequence[Change]) -> None:
    """Let the stream keep what it holds, as far as its retention permits.

    Args:
        store: The store.
        past: The newest changes in its stream.
    """
    if not past:
        return
    oldest, at_ms = await store.reader.read_oldest_event()
    oldest, at_ms = (oldest, at_ms) if oldest else (past[0].revision, past[0].at_ms)
    size = sum(change.size for change in past) // len(past)
    store.retention.start_at(oldest, at_ms, past[0].revision, past[0].at_ms, size)
    for change in past:
        store.retention.add_event(change.revision, change.at_ms, change.size)


async def _read_records(reader: StoreReader, held: Mapping[str, Record]) -> tuple[dict[str, Record], set[str]]:
    records: dict[str, Record] = {}
    damaged: set[str] = set()
    turn = Turn()
    async for page in reader.scan_records():
        for encoded_name, wire in page.items():
            await turn.yield_if_over()
            name = encoded_name.decode(errors="replace")
            record = read_record(wire, name) or held.get(name)
            if record is None:
                damaged.add(name)
            elif (earlier := records.get(name)) is None or earlier.revision < record.revision:
                records[name] = record
    return records, damaged


async def _read_past(reader: StoreReader, high: Position, start: int) -> tuple[list[Change], StoredEvent | None]:
    """Return the changes in the stream from ``start`` that lead to ``high`` without a gap, and the last event."""
    past: list[Change] = []
    newest: StoredEvent | None = None
    turn = Turn()
    async for page in reader.scan_events(until=high.revision, since=start):
        for event in page:
            await turn.yield_if_over()
            if event.epoch != high.epoch or (past and event.revision != past[-1].revision + 1):
                past.clear()
            try:
                if event.epoch == high.epoch:
                    past.append(change_from_event(event, None))
                    newest = event
            except DamagedEvent:  # a gap; the records contain the change
                past.clear()
    if not past or past[-1].revision != high.revision:
        return [], None
    return past, newest
