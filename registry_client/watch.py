"""``Watch``: a stream of changes that survives restarts and drains of the registry, and slow readers."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self, TypeAlias

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from registry_client import difference
from registry_client.calls import Session, next_message
from registry_client.channel import Channels
from registry_client.errors import CursorExpired, RegistryError, Unauthenticated, WatcherTooSlow
from registry_client.retry import StreamEnds, is_resumable
from registry_client.values import duration

if TYPE_CHECKING:
    import grpc

    _WatchCall: TypeAlias = grpc.aio.UnaryStreamCall[WatchEventsRequest, WatchEventsResponse]

REMOVAL_TYPES: Final = (EventType.EVENT_TYPE_SERVICE_UNREGISTERED, EventType.EVENT_TYPE_SERVICE_UNMATCHED)
"""Types of the events after which a service does not match any more."""
_MAX_MISSED_BOOKMARKS: Final = 3
"""Bookmark intervals without a message after which a stream counts as broken. One may be late on a busy machine."""
_CONNECT_SECONDS: Final = 5.0
"""Additional time for the first message, which includes the connection."""


class Watch:
    """An asynchronous iterator of events that resumes automatically. Create it with ``RegistryClient.watch``.

    The watch keeps the state that results from its events (``services``). If the registry no longer holds the changes
    that were missed while the stream was broken, the watch takes a snapshot and returns the difference as events with
    the reason ``RESYNC``: removed, new and changed services. A watch that started at a cursor of the caller has no
    state to compare with and raises ``CursorExpired`` instead.

    Iterating raises ``InvalidRequest`` for an invalid filter or cursor, and ``Unauthenticated`` or
    ``PermissionDenied``. It does not raise an error while the registry is unavailable: see ``connected``. Only one task
    may iterate at a time. Leaving the loop keeps the stream open until ``close`` or garbage collection; ``async with``
    closes it immediately.

    Attributes:
        cursor: Position after the last event that the caller has handled: an event counts as handled once the caller
            requests the next one. Empty before that.
        last_heard: Time of the registry's last message, by ``time.monotonic``; 0 if there was none.
        last_error: Error that broke the stream; None while it is open.
    """

    def __init__(
        self,
        channels: Channels,
        session: Session,
        filter_: ServiceFilter,
        *,
        types: frozenset[EventType.ValueType],
        include_snapshot: bool,
        cursor: str,
        bookmark_interval: float,
    ) -> None:
        self._channels = channels
        self._session = session
        self._filter = filter_
        self._types = types
        self._include_snapshot = include_snapshot
        self._bookmark_interval = bookmark_interval
        self._call: _WatchCall | None = None
        self._ends = StreamEnds()
        self._connected = False
        self._target = ""
        self._failures = 0
        self._resume_cursor = cursor  # where the stream resumes; `cursor` follows once the events are handled
        self._services: dict[str, Service] = {}
        self._complete = False  # whether _services holds all matching services; never after a cursor of the caller
        self._incoming: dict[str, Service] | None = None  # the received part of a snapshot
        self._pending: deque[Event] = deque()
        self._closed = False
        self.cursor = cursor
        self.last_heard = 0.0
        self.last_error: RegistryError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._pending:
            self.cursor = self._resume_cursor
            if self._closed:
                raise StopAsyncIteration
            events = await self.next_events()
            self._pending.extend(event for event in events if self._is_requested(event))
        return self._pending.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def services(self) -> Mapping[str, Service]:
        """The matching services by name, after all received events. Messages are shared: do not modify them."""
        return MappingProxyType(self._services)

    @property
    def complete(self) -> bool:
        """Whether ``services`` holds all matching services: after the first snapshot; never with a caller's cursor."""
        return self._complete

    @property
    def connected(self) -> bool:
        """Whether messages arrive. A planned end, as of a rolling restart, is no interruption if it resumes at once."""
        return self._connected

    @property
    def next_cursor(self) -> str:
        """The value of ``cursor`` once the caller has handled all events returned so far.

        Empty if further events of the same message follow the last one: a watch cannot resume within a message.
        """
        return "" if self._pending else self._resume_cursor

    def check_usable(self) -> None:
        """Raise the error of ``Channels.check_usable``."""
        self._channels.check_usable()

    async def close(self) -> None:
        """End the watch: iteration stops. Idempotent."""
        self._closed, self._connected = True, False
        self._cancel_stream()

    async def next_events(self) -> list[Event]:
        """Wait for the next message; return its events, or the difference to a new snapshot.

        The list is empty for a bookmark, which marks an interval without changes, and while a snapshot arrives.
        """
        try:
            return await self._next_events()
        except BaseException:
            self._connected = False
            raise

    async def _next_events(self) -> list[Event]:
        while True:
            try:
                message = await self._read_message()
            except CursorExpired as error:
                self._cancel_stream()
                if self._resume_cursor and not self._complete:
                    raise
                self.last_error, self._connected = error, False
                if not self._resume_cursor:  # during a snapshot: the store was replaced meanwhile
                    await self.back_off(error)
                self._resume_cursor = ""
            except RegistryError as error:
                self._cancel_stream()
                if self._closed:
                    return []
                planned = not isinstance(error, WatcherTooSlow) and self._ends.is_planned(error)
                # A function may return a new token if the previous one has expired.
                renewable = planned and isinstance(error, Unauthenticated) and self._channels.has_token_source
                if not is_resumable(error) and not renewable:
                    raise
                await self.back_off(error, planned=planned)
            else:
                self.last_heard = time.monotonic()
                self.last_error = None
                self._ends.answered = self._connected = True
                self._failures = 0
                return self._apply_message(message)

    async def back_off(self, error: RegistryError, *, planned: bool = False) -> None:
        """Switch to the next target, and wait before the stream is opened again; record the error of a failure."""
        self._channels.name_proxy(error, self._target)
        if not planned:
            self.last_error, self._connected = error, False
        if isinstance(error, WatcherTooSlow):
            return  # the missed events are available now
        self._failures += 1
        await asyncio.sleep(self._channels.reopen_delay(self._target, self._failures, error))

    async def _read_message(self) -> WatchEventsResponse:
        timeout = _MAX_MISSED_BOOKMARKS * self._bookmark_interval
        if self._call is None:
            self._call = self._open_stream()
            timeout += _CONNECT_SECONDS
        try:
            return await next_message(self._call, WatchEventsResponse, timeout)
        except asyncio.CancelledError:
            # gRPC cancels a stream together with the task that reads from it. The next stream resumes at the cursor.
            self._call = None
            raise

    def _open_stream(self) -> "_WatchCall":
        self._ends.answered = False
        request = WatchEventsRequest(
            filter=self._filter,
            cursor=self._resume_cursor,
            include_snapshot=not self._resume_cursor,
            bookmark_interval=duration(self._bookmark_interval),
        )
        self._incoming = None if self._resume_cursor else {}
        self._target = self._channels.target
        return self._channels.stub.WatchEvents(request, metadata=self._channels.call_metadata())

    def _cancel_stream(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _apply_message(self, message: WatchEventsResponse) -> list[Event]:
        if self._incoming is not None:
            for event in message.events:
                if event.type == EventType.EVENT_TYPE_SERVICE_SNAPSHOT:
                    self._incoming[event.service.name] = event.service
            if not message.snapshot_complete:
                return []  # a watch cannot resume at a cursor within a snapshot
            snapshot, self._incoming = self._incoming, None
            return self._apply_snapshot(snapshot, message)
        for event in message.events:
            if event.reason == EventReason.EVENT_REASON_RESYNC:
                self._session.reset_revision(event.revision)
            self._session.observe_revision(event.revision)
            if event.type in REMOVAL_TYPES:
                self._services.pop(event.service.name, None)
            elif event.HasField("service"):
                self._services[event.service.name] = event.service
        self._resume_cursor = message.cursor
        return list(message.events)

    def _apply_snapshot(self, snapshot: dict[str, Service], message: WatchEventsResponse) -> list[Event]:
        """Replace the state by a complete snapshot; return the events that it means for the caller."""
        if self._complete:
            self._session.reset_revision(message.revision)
            events = difference.diff_events(self._services, snapshot, message.revision)
        elif self._include_snapshot:
            events = difference.snapshot_events(snapshot)
        else:
            events = []
        self._services = snapshot
        self._complete = True
        self._resume_cursor = message.cursor
        return events

    def _is_requested(self, event: Event) -> bool:
        # The client filters by type, because the state depends on the events of all types.
        return not self._types or event.type in self._types or event.type == EventType.EVENT_TYPE_SERVICE_SNAPSHOT
