"""``Watcher``: one stream of events, with a bounded buffer."""

import asyncio
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from typing import Final, Literal, Protocol, Self, get_args

from registry_server.catalog.change import WatchEvent
from registry_server.errors import CursorExpired, RegistryError, ShuttingDown, WatcherTooSlow
from registry_server.model.filters import Filter
from registry_server.store import Position
from registry_server.watch.messages import EventBatch, Snapshot, WatchLimits, snapshot_batches, split_events

CLIENT_LEFT: Final = "CLIENT_LEFT"
"""End reason of a watch that its client closed."""
WATCH_ENDS: Final = (CLIENT_LEFT, WatcherTooSlow.reason, CursorExpired.reason, ShuttingDown.reason)
WatchStart = Literal["now", "cursor", "snapshot"]
WATCH_STARTS: Final[tuple[WatchStart, ...]] = get_args(WatchStart)


class WatchCounters:
    """Counters of a hub."""

    def __init__(self) -> None:
        self.started: Counter[WatchStart] = Counter()
        self.ended: Counter[str] = Counter()
        """By the ``reason`` of the error that ended the watch, or ``CLIENT_LEFT``."""
        self.events = 0
        """Changes handed to streams, without snapshots and events replayed from a cursor."""
        self.cursors_expired = 0
        """Watches refused because their cursor could not be resumed."""


class WatcherHost(Protocol):
    """What a watcher needs from the hub."""

    limits: WatchLimits
    counters: WatchCounters

    def shared_batch(self, events: list[WatchEvent], position: Position, scope: str) -> EventBatch:
        """Return a batch, built once for all watchers that send the same events."""

    def remove_watcher(self, watcher: "Watcher") -> None:
        """Stop offering events to a watcher."""

    def wake(self, watcher: "Watcher", waiter: "asyncio.Future[None]") -> None:
        """Resolve the future that a watcher waits for, in this turn of the event loop or a later one."""


class Group(Protocol):
    """The group of a watcher, which offers it events."""

    filter: Filter

    @property
    def position(self) -> Position:
        """Position up to which all events were offered."""


class Watcher:
    """One stream of batches of events: an async iterator and a context manager.

    ``offer`` never waits, so a stalled reader costs its bounded buffer and nothing else.
    """

    def __init__(self, host: WatcherHost, group: Group, types: Collection[int], bookmark_interval: float) -> None:
        self._host, self._group = host, group
        self._scope = group.filter.scope
        self._limits = host.limits
        self._types = frozenset(types)
        self._bookmark_interval = bookmark_interval
        self._opening: Iterator[EventBatch] = iter(())
        self._buffer: deque[tuple[Position, WatchEvent]] = deque()
        self._buffer_bytes = 0
        self._waiter: asyncio.Future[None] | None = None  # asyncio.Event would allocate a future for each wait, too
        self._end: RegistryError | None = None
        self._end_immediately = False
        self._quiet_since = 0.0  # event loop time
        self._bookmark_due = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._host.remove_watcher(self)
        if self._end is None:
            self._host.counters.ended[CLIENT_LEFT] += 1

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventBatch:
        """Return the next batch.

        Raises:
            RegistryError: The watch has ended; the error is the reason.
        """
        if self._end is not None and self._end_immediately:
            raise self._end
        if (batch := next(self._opening, None)) is not None:
            return batch
        self._bookmark_due = False
        if self._buffer:
            # A thousand streams that always have events would otherwise fill every turn, and calls would never start.
            turn = asyncio.get_running_loop().create_future()
            self._host.wake(self, turn)
            await turn
        elif not self._is_ready():
            self._start_quiet_period()
            while not self._is_ready():
                self._waiter = waiter = asyncio.get_running_loop().create_future()
                await waiter
        # An event that arrived in the same turn of the loop as the bookmark timer must be sent, not skipped.
        if self._end is not None and not self._buffer:
            raise self._end
        return self._next_batch()

    def open_with_snapshot(self, snapshot: Snapshot) -> None:
        """Send a snapshot first."""
        self._opening = snapshot_batches(snapshot, self._limits.snapshot_message_bytes)

    def open_with_events(self, events: Sequence[WatchEvent], start: Position) -> None:
        """Send earlier events first.

        Args:
            events: The events.
            start: Position of the replica now, which follows the last of them.
        """
        self._opening = self._event_batches(events, start)

    def offer(self, offered: tuple[Position, WatchEvent]) -> None:
        """Buffer an event with the position that it belongs to; end the watch if the buffer is full."""
        event = offered[1]
        if self._end is not None or (self._types and event.type not in self._types):
            return
        self._buffer.append(offered)
        self._buffer_bytes += len(event.frame)
        if len(self._buffer) > self._limits.buffer_events or (
            self._buffer_bytes > self._limits.buffer_bytes and len(self._buffer) > 1
        ):
            self.end(WatcherTooSlow(f"{len(self._buffer)} events were buffered"), immediately=True)
        self._wake()

    def end(self, reason: RegistryError, *, immediately: bool = False) -> None:
        """End the watch, after its buffer was sent or ``immediately``."""
        if self._end is None:
            self._end, self._end_immediately = reason, immediately
            self._host.counters.ended[reason.reason] += 1
        if immediately:
            self._buffer.clear()
            self._buffer_bytes = 0
            self._opening = iter(())
            # The stream may stay blocked in a write for a long time, so the group must stop offering events to it now.
            self._host.remove_watcher(self)
        self._wake()

    def _is_ready(self) -> bool:
        return bool(self._buffer) or self._end is not None or self._bookmark_due

    def _start_quiet_period(self) -> None:
        """Start the time after which a bookmark is due; one timer serves many periods, since each costs 6 µs."""
        loop = asyncio.get_running_loop()
        self._quiet_since = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._bookmark_interval, self._on_timer)

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        remaining = self._quiet_since + self._bookmark_interval - loop.time()
        if remaining > 0:
            self._timer = loop.call_later(remaining, self._on_timer)
        else:
            self._timer = None
            self._bookmark_due = True
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            self._host.wake(self, waiter)

    def _next_batch(self) -> EventBatch:
        """Return the buffered events up to the message size, always whole revisions; without events, a bookmark."""
        events: list[WatchEvent] = []
        size, position = 0, self._group.position
        max_bytes = self._limits.message_bytes
        while self._buffer and (size < max_bytes or self._buffer[0][0] == position):
            position, event = self._buffer.popleft()
            events.append(event)
            size += len(event.frame)
        self._buffer_bytes -= size
        self._host.counters.events += len(events)
        # A watcher with an empty buffer has received everything matched so far, including changes that do not match:
        # its cursor advances with them and does not age. A watch that has ended receives nothing more.
        caught_up = not self._buffer and self._end is None
        return self._host.shared_batch(events, self._group.position if caught_up else position, self._scope)

    def _event_batches(self, past: Sequence[WatchEvent], start: Position) -> Iterator[EventBatch]:
        wanted = (event for event in past if not self._types or event.type in self._types)
        reached: list[WatchEvent] = []
        for events in split_events(wanted, self._limits.message_bytes):
            if reached:
                yield EventBatch(reached, Position(start.epoch, reached[-1].revision), scope=self._scope)
            reached = events
        # Sent even without events: the client learns immediately that the watch is open, and receives its first cursor.
        yield EventBatch(reached, start, scope=self._scope)
