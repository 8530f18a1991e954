"""``Watcher``: one stream of events, with a bounded buffer."""

import asyncio
from collections import deque
from collections.abc import Collection, Iterator
from typing import Final, Protocol, Self

from registry_server.errors import CursorExpired, RegistryError, ShuttingDown, WatcherTooSlow
from registry_server.store import Position
from registry_server.watch.messages import Snapshot, WatchLimits, encode_message, snapshot_messages

CLIENT_LEFT: Final = "CLIENT_LEFT"
"""End reason of a watch that its client closed."""
WATCH_ENDS: Final = (CLIENT_LEFT, WatcherTooSlow.reason, CursorExpired.reason, ShuttingDown.reason)


class WatcherHost(Protocol):
    """What a watcher needs from the hub."""

    limits: WatchLimits

    @property
    def position(self) -> Position:
        """Newest position that this process has applied."""

    def shared_message(self, frames: list[bytes], position: Position) -> bytes:
        """Return a serialised message, built once for all watchers that send the same events."""

    def count_sent(self, events: int) -> None:
        """Count events that a watcher has handed to its stream."""

    def count_end(self, reason: str) -> None:
        """Count a watch that has ended."""

    def remove_watcher(self, watcher: "Watcher") -> None:
        """Stop offering events to a watcher."""


class Watcher:
    """One stream of serialised ``WatchEventsResponse`` messages: an async iterator and a context manager.

    ``offer`` never waits, so a stalled reader costs its bounded buffer and nothing else.
    """

    def __init__(self, host: WatcherHost, types: Collection[int], bookmark_interval: float) -> None:
        self._host = host
        self._limits = host.limits
        self._types = frozenset(types)
        self._bookmark_interval = bookmark_interval
        self._opening: Iterator[bytes] = iter(())
        self._buffer: deque[tuple[Position, bytes]] = deque()
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
            self._host.count_end(CLIENT_LEFT)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Return the next message.

        Raises:
            RegistryError: The watch has ended; the error is the reason.
        """
        if self._end is not None and self._end_immediately:
            raise self._end
        if (message := next(self._opening, None)) is not None:
            return message
        self._bookmark_due = False
        if not self._is_ready():
            self._start_quiet_period()
            while not self._is_ready():
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        # An event that arrived in the same turn of the loop as the bookmark timer must be sent, not skipped.
        if self._end is not None and not self._buffer:
            raise self._end
        return self._next_message()

    def open_with_snapshot(self, snapshot: Snapshot) -> None:
        """Send a snapshot first."""
        self._opening = snapshot_messages(snapshot, self._limits.snapshot_message_bytes)

    def open_with_events(self, events: Iterator[tuple[int, int, bytes]], start: Position) -> None:
        """Send earlier events first.

        Args:
            events: Revision, type and frame of each event.
            start: Position of the replica now, which follows the last of them.
        """
        self._opening = self._event_messages(events, start)

    def offer(self, position: Position, type_: int, frame: bytes) -> None:
        """Buffer an event; end the watch if the buffer is full."""
        if self._end is not None or (self._types and type_ not in self._types):
            return
        self._buffer.append((position, frame))
        self._buffer_bytes += len(frame)
        if len(self._buffer) > self._limits.buffer_events or self._buffer_bytes > self._limits.buffer_bytes:
            self.end(WatcherTooSlow(len(self._buffer)), immediately=True)
        self._wake()

    def end(self, reason: RegistryError, *, immediately: bool = False) -> None:
        """End the watch, after its buffer was sent or ``immediately``."""
        if self._end is None:
            self._end, self._end_immediately = reason, immediately
            self._host.count_end(reason.reason)
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
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _next_message(self) -> bytes:
        """Return the buffered events up to the message size, always whole revisions; without events, a bookmark."""
        frames: list[bytes] = []
        size, position = 0, self._host.position
        max_bytes = self._limits.message_bytes
        while self._buffer and (size < max_bytes or self._buffer[0][0] == position):
            position, frame = self._buffer.popleft()
            frames.append(frame)
            size += len(frame)
        self._buffer_bytes -= size
        self._host.count_sent(len(frames))
        # A watcher with an empty buffer has received everything applied so far, including changes that do not match:
        # its cursor advances with them and does not age. A watch that has ended receives nothing more.
        caught_up = not self._buffer and self._end is None
        return self._host.shared_message(frames, self._host.position if caught_up else position)

    def _event_messages(self, events: Iterator[tuple[int, int, bytes]], start: Position) -> Iterator[bytes]:
        frames: list[bytes] = []
        size = 0
        for revision, type_, frame in events:
            if self._types and type_ not in self._types:
                continue
            frames.append(frame)
            size += len(frame)
            if size >= self._limits.message_bytes:
                yield encode_message(frames, Position(start.epoch, revision))
                frames, size = [], 0
        # Sent even without events: the client learns immediately that the watch is open, and receives its first cursor.
        yield encode_message(frames, start)
