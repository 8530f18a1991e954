"""Watches: every change that matches, to everyone who asked, in revision order."""

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final, Literal, Self, get_args
from weakref import WeakValueDictionary

from ossa.registry.v1.event_pb2 import EventType
from registry_server.catalog.change import Change, snapshot_event
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.errors import (
    CursorExpired,
    Overloaded,
    RegistryError,
    RevisionNotReached,
    ShuttingDown,
    WatcherTooSlow,
)
from registry_server.model.filters import Filter
from registry_server.model.record import Record
from registry_server.model.tokens import Cursor, encode_cursor
from registry_server.model.wire import bytes_field, integer_field
from registry_server.store import Position

# Fields of WatchEventsResponse; `events` (1) is how changes are framed.
_CURSOR, _REVISION, _SNAPSHOT_COMPLETE = 2, 3, 4

_MESSAGE_BYTES = 1 << 20
"""A message is closed once it has this much, unless one revision has more: clients take 4 MiB by default."""
_SNAPSHOT_MESSAGE_BYTES = 256 << 10
"""Snapshots come in smaller messages, so that the first services arrive early."""
_MOST_SNAPSHOT_RECORDS = 8_000_000
"""Bound of the services that all snapshots under way list together: 8 bytes each, for as long as a reader takes."""
_RESYNC_BYTES = 2 << 20
"""A difference found by a resync is one revision, so one message; if it is larger than this, watchers start over."""
_PATIENCE = 5.0
"""Seconds that a watch waits to begin where its client stands already, told by a process that is ahead of this one."""
CLIENT_LEFT: Final = "CLIENT_LEFT"
"""How a watch ends that no error ends."""
ENDS: Final = (CLIENT_LEFT, WatcherTooSlow.reason, CursorExpired.reason, ShuttingDown.reason)
WatchStart = Literal["now", "cursor", "snapshot"]
STARTS: Final[tuple[WatchStart, ...]] = get_args(WatchStart)
_UNMATCHED = EventType.EVENT_TYPE_SERVICE_UNMATCHED


class Watcher:
    """One stream of serialised ``WatchEventsResponse``: what waits for it, and where it stands.

    An async iterator and a context manager; who takes it must leave it. ``offer`` is called by whoever changes the
    replica and never waits, so a reader that stalls costs its bounded buffer and nothing else.
    """

    def __init__(self, hub: "WatchHub", group: "WatchGroup", types: Collection[int], bookmark_interval: float) -> None:
        self._hub = hub
        self._group = group
        self._types = frozenset(types)
        self._bookmark_interval = bookmark_interval
        self._opening: Iterator[bytes] = iter(())
        self._waiting: deque[tuple[Position, bytes]] = deque()
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None  # and no Event, which makes one for each wait as well
        self._end: RegistryError | None = None
        self._end_at_once = False
        self._quiet_since = 0.0  # by the clock of the loop
        self._bookmark_due = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._hub.leave(self._group, self)
        if self._end is None:
            self._hub.figures.ended[CLIENT_LEFT] += 1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Waits for the next message.

        Raises:
            RegistryError: Why the watch ends.
        """
        if self._end is not None and self._end_at_once:
            raise self._end
        if (message := next(self._opening, None)) is not None:
            return message
        self._bookmark_due = False
        if not self._has_news():
            self._begin_quiet()
            while not self._has_news():
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        # Also when the time is up: what came in the same turn of the loop must not be passed by with a bookmark.
        if self._end is not None and not self._waiting:
            raise self._end
        return self._take()

    def open_with_snapshot(self, snapshot: "Snapshot") -> None:
        """Begins with the services as they are now."""
        self._opening = self._messages_of(snapshot)

    def open_with_past(self, past: Sequence[Change], start: Position) -> None:
        """Begins with the changes that led to ``start``, which is now."""
        self._opening = self._past(past, start)

    def offer(self, position: Position, type_: int, frame: bytes) -> None:
        """Adds an event to what waits; ends the watch if that is too much."""
        if self._end is not None or (self._types and type_ not in self._types):
            return
        self._waiting.append((position, frame))
        self._waiting_bytes += len(frame)
        if len(self._waiting) > self._hub.buffer_events or self._waiting_bytes > self._hub.buffer_bytes:
            self.end(WatcherTooSlow(len(self._waiting)), at_once=True)
        self._wake()

    def end(self, reason: RegistryError, *, at_once: bool = False) -> None:
        """Ends the watch, after what waits is sent or ``at_once``."""
        if self._end is None:
            self._end, self._end_at_once = reason, at_once
            self._hub.figures.ended[reason.reason] += 1
        if at_once:
            self._waiting.clear()
            self._waiting_bytes = 0
            self._opening = iter(())
            # Its stream may hang in a write for long: from here on it costs changes nothing.
            self._hub.leave(self._group, self)
        self._wake()

    def _has_news(self) -> bool:
        return bool(self._waiting) or self._end is not None or self._bookmark_due

    def _begin_quiet(self) -> None:
        """Begins the time after which a bookmark is due; one timer goes on over many of them, since each costs 6 µs."""
        loop = asyncio.get_running_loop()
        self._quiet_since = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._bookmark_interval, self._on_timer)

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        left = self._quiet_since + self._bookmark_interval - loop.time()
        if left > 0:
            self._timer = loop.call_later(left, self._on_timer)
        else:
            self._timer = None
            self._bookmark_due = True
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wants(self, type_: int) -> bool:
        return not self._types or type_ in self._types

    def _take(self) -> bytes:
        """Takes what waits, up to a message's size and to the end of a revision; if nothing does, it is a bookmark."""
        frames: list[bytes] = []
        size, position = 0, self._hub.replica.position
        while self._waiting and (size < _MESSAGE_BYTES or self._waiting[0][0] == position):
            position, frame = self._waiting.popleft()
            frames.append(frame)
            size += len(frame)
        self._waiting_bytes -= size
        self._hub.figures.events += len(frames)
        # With nothing left to send the watcher has seen all that is applied, also what does not match: its cursor stays
        # young while other services change. But a watch that has ended is told of nothing more.
        level = not self._waiting and self._end is None
        return self._hub.message(frames, self._hub.replica.position if level else position)

    @staticmethod
    def _messages_of(snapshot: "Snapshot") -> Iterator[bytes]:
        start = snapshot.position
        frames: list[bytes] = []
        size = 0
        for record in snapshot.records:
            frames.append(snapshot_event(record))
            size += len(frames[-1])
            if size >= _SNAPSHOT_MESSAGE_BYTES:
                yield _message(frames, start, resumable=False)
                frames, size = [], 0
        if frames:
            yield _message(frames, start, resumable=False)
        yield _message((), start, snapshot_complete=True)

    def _past(self, past: Sequence[Change], start: Position) -> Iterator[bytes]:
        frames: list[bytes] = []
        size = 0
        for change in past:
            event = self._group.event_for(change)
            if event is None or not self._wants(event[0]):
                continue
            frames.append(event[1])
            size += len(event[1])
            if size >= _MESSAGE_BYTES:
                yield _message(frames, Position(start.epoch, change.revision))
                frames, size = [], 0
        # Also without events: it tells the client at once that it watches now, and from where.
        yield _message(frames, start)


class Snapshot:
    """The services that match a filter at one position; one for all watchers who begin with it."""

    def __init__(self, records: Sequence[Record], position: Position) -> None:
        self.records = records
        self.position = position


class WatchFigures:
    """What a hub counts."""

    def __init__(self) -> None:
        self.started: Counter[WatchStart] = Counter()
        self.ended: Counter[str] = Counter()
        """By the ``reason`` of the error that ended the watch, or ``CLIENT_LEFT``."""
        self.events = 0
        """Changes that were handed to streams; snapshots and what a cursor brings again left out."""
        self.cursors_expired = 0
        """Watches that could not go on where their cursor stands."""


class WatchGroup:
    """All watchers with the same filter: it is matched once for them."""

    def __init__(self, filter_: Filter, replica: Replica) -> None:
        self.filter = filter_
        self._replica = replica
        self.watchers: dict[Watcher, None] = {}

    def on_change(self, change: Change, *, matched: bool, matches: bool) -> None:
        """Offers the change to every watcher."""
        type_, frame = _event_of(change, matched=matched, matches=matches)
        position = self._replica.position
        for watcher in list(self.watchers):  # one that is too slow leaves
            watcher.offer(position, type_, frame)

    def event_for(self, change: Change) -> tuple[int, bytes] | None:
        """What a watcher of this group gets of a change: type and frame, or nothing."""
        if change.is_notice:
            return change.type, change.event()
        matched = change.before is not None and self.filter.matches(change.before)
        matches = change.after is not None and self.filter.matches(change.after)
        return _event_of(change, matched=matched, matches=matches) if matched or matches else None


class WatchHub:
    """Lets watchers join and leave, and ends them all when the server drains."""

    def __init__(self, replica: Replica, discovery: Discovery, *, buffer_events: int, buffer_bytes: int) -> None:
        self.replica = replica
        self.buffer_events = buffer_events
        self.buffer_bytes = buffer_bytes
        self._discovery = discovery
        self._groups: dict[bytes, WatchGroup] = {}
        self._snapshots: WeakValueDictionary[tuple[bytes, Position], Snapshot] = WeakValueDictionary()
        self._newest: tuple[list[bytes], Position, bytes] | None = None
        self._draining = False
        self.figures = WatchFigures()
        replica.on_applied.append(self._on_applied)

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return sum(len(group.watchers) for group in self._groups.values())

    async def join(
        self,
        filter_: Filter,
        *,
        types: Collection[int] = (),
        cursor: Cursor | None = None,
        snapshot: bool = False,
        bookmark_interval: float = 30.0,
    ) -> Watcher:
        """Begins a watch. The first message comes at once; the caller must leave the watcher (``with``).

        Args:
            filter_: Which services.
            types: ``EventType`` values; empty = all.
            cursor: Where to go on; ``None`` = from now.
            snapshot: Without a cursor: send the state first.
            bookmark_interval: Seconds after which a quiet stream gets an empty message.

        Raises:
            CursorExpired: What came after the cursor is no longer all at hand.
            ShuttingDown: The server drains.
            Overloaded: Too many snapshots are under way.
        """
        if cursor is not None and cursor.epoch == self.replica.position.epoch:
            with suppress(RevisionNotReached):
                await self.replica.reached(cursor.revision, _PATIENCE)
        names = await self._discovery.matching(filter_) if snapshot and cursor is None else None
        # From here on nothing is awaited: state, past and joining are of one position.
        start = self.replica.position
        try:
            past = self._since(cursor) if cursor else ()
        except CursorExpired:
            self.figures.cursors_expired += 1
            raise
        if self._draining:
            raise ShuttingDown
        opening = self._snapshot(filter_, names) if names is not None else None
        group = self._groups.get(filter_.key)
        if group is None:
            group = self._groups[filter_.key] = WatchGroup(filter_, self.replica)
            self.replica.interests.add(group)
        watcher = Watcher(self, group, types, bookmark_interval)
        if opening is not None:
            watcher.open_with_snapshot(opening)
        else:
            watcher.open_with_past(past, start)
        group.watchers[watcher] = None
        self.figures.started["cursor" if cursor else "now" if names is None else "snapshot"] += 1
        return watcher

    def _snapshot(self, filter_: Filter, names: Sequence[str]) -> Snapshot:
        """The services of these names, which match the filter now; kept for as long as somebody is sent them."""
        key = filter_.key, self.replica.position
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            if (listed := self.snapshot_records) and listed + len(names) > _MOST_SNAPSHOT_RECORDS:
                raise Overloaded("snapshots", _MOST_SNAPSHOT_RECORDS, f"snapshots of {listed} services are sent here")
            snapshot = Snapshot([self.replica.records[name] for name in names], key[1])
            self._snapshots[key] = snapshot
        return snapshot

    @property
    def snapshot_records(self) -> int:
        """How many services the snapshots under way list together."""
        return sum(len(snapshot.records) for snapshot in self._snapshots.values())

    def message(self, frames: list[bytes], position: Position) -> bytes:
        """Makes a message of events; once for all watchers who get the same."""
        if self._newest is None or self._newest[1] != position or self._newest[0] != frames:
            self._newest = frames, position, _message(frames, position)
        return self._newest[2]

    def leave(self, group: WatchGroup, watcher: Watcher) -> None:
        """Forgets a watcher."""
        group.watchers.pop(watcher, None)
        if not group.watchers and self._groups.get(group.filter.key) is group:
            del self._groups[group.filter.key]
            self.replica.interests.discard(group)

    def start_over(self) -> None:
        """Ends every watch: what happened is too much to tell."""
        for watcher in self._everyone():
            watcher.end(CursorExpired("the store was replaced"), at_once=True)

    def drain(self) -> None:
        """Ends every watch once it has sent what waits, and lets nobody join."""
        self._draining = True
        for watcher in self._everyone():
            watcher.end(ShuttingDown())

    def _on_applied(self, change: Change) -> None:
        if change.is_notice:  # it touches no service, so no interest is told of it
            for group in list(self._groups.values()):
                group.on_change(change, matched=False, matches=False)

    def _everyone(self) -> list[Watcher]:
        return [watcher for group in self._groups.values() for watcher in group.watchers]

    def _since(self, cursor: Cursor) -> Sequence[Change]:
        position = self.replica.position
        if not cursor.resumable:
            raise CursorExpired("the cursor is of an unfinished snapshot")
        if cursor.epoch != position.epoch:
            raise CursorExpired("the cursor is of another epoch of the store")
        if cursor.revision > position.revision:
            raise CursorExpired(f"revision {cursor.revision} was not reached")
        past = self.replica.history.since(cursor.revision)
        if past is None:
            raise CursorExpired(f"changes after revision {cursor.revision} are no longer all kept")
        return past


def fits_one_message(changes: Sequence[Change]) -> bool:
    """Whether a resync's difference can be told in the one message that it must be."""
    return sum(change.size for change in changes) <= _RESYNC_BYTES


def _event_of(change: Change, *, matched: bool, matches: bool) -> tuple[int, bytes]:
    if matched and not matches and change.after is not None:
        return _UNMATCHED, change.unmatched()
    return change.type, change.event()


def _message(
    frames: Collection[bytes], position: Position, *, resumable: bool = True, snapshot_complete: bool = False
) -> bytes:
    cursor = encode_cursor(Cursor(position.epoch, position.revision, resumable=resumable))
    return b"".join(
        (
            *frames,
            bytes_field(_CURSOR, cursor.encode()),
            integer_field(_REVISION, position.revision),
            integer_field(_SNAPSHOT_COMPLETE, int(snapshot_complete)),
        )
    )
