"""``Watch``: every change, through restarts, drains and slow spells."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import grpc

from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from registry_client import difference
from registry_client.calls import Session, being_cancelled
from registry_client.channel import Channels
from registry_client.errors import (
    CursorExpired,
    DeadlineExceeded,
    RegistryError,
    RegistryUnavailable,
    Unauthenticated,
    WatcherTooSlow,
    error_of_call,
)
from registry_client.messages import Event, EventReason, EventType, Service, ServiceFilter
from registry_client.retry import Backoff, may_resume
from registry_client.values import duration

if TYPE_CHECKING:
    _Call: TypeAlias = grpc.aio.UnaryStreamCall[WatchEventsRequest, WatchEventsResponse]

_GONE: Final = (EventType.EVENT_TYPE_SERVICE_UNREGISTERED, EventType.EVENT_TYPE_SERVICE_UNMATCHED)
_SILENT_BOOKMARKS: Final = 3
"""Bookmarks that may be missing before a stream counts as broken: one may be late on a busy machine."""
_CONNECTING: Final = 5.0
"""Seconds that the first message may take beyond that."""


class Watch:
    """An asynchronous iterator of events that resumes by itself. Made by ``RegistryClient.watch``.

    It knows the state that its events lead to (``services``). So where the registry no longer holds what happened while
    the stream was broken, it takes a snapshot and gives the difference, as events with reason ``RESYNC``: services that
    are gone, new or changed. Only if the watch began with a cursor of the caller's there is nothing to compare with;
    then ``CursorExpired`` is raised.

    Iterating raises ``InvalidRequest`` for a bad filter or cursor, and ``Unauthenticated`` or ``PermissionDenied``.
    That nobody answers is not raised: see ``connected``. One task may iterate at a time. Leaving the loop leaves the
    stream open until ``close`` or until the watch is collected; ``async with`` closes it at once.

    Attributes:
        cursor: Stands right after the last event that was handled, that is, the one before the last that was given.
            Empty before that.
        last_heard: When the registry last said something, by ``time.monotonic``; 0 if never.
        last_error: Why the stream broke last; None while it is open.
    """

    def __init__(
        self,
        channels: Channels,
        backoff: Backoff,
        session: Session,
        filter_: ServiceFilter,
        *,
        types: frozenset[EventType.ValueType],
        include_snapshot: bool,
        cursor: str,
        bookmark_interval: float,
    ) -> None:
        self._channels = channels
        self._backoff = backoff
        self._session = session
        self._filter = filter_
        self._types = types
        self._include_snapshot = include_snapshot
        self._bookmark_interval = bookmark_interval
        self._call: _Call | None = None
        self._target = ""
        self._failures = 0
        self._resume = cursor  # where the stream goes on; `cursor` follows once the events are handled
        self._services: dict[str, Service] = {}
        self._complete = False  # whether _services is all that matches: not after a cursor of the caller's
        self._arriving: dict[str, Service] | None = None  # a snapshot, as far as it has come
        self._pending: deque[Event] = deque()
        self._closed = False
        self.cursor = cursor
        self.last_heard = 0.0
        self.last_error: RegistryError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._pending:
            self.cursor = self._resume
            if self._closed:
                raise StopAsyncIteration
            events = await self.next_events()
            self._pending.extend(event for event in events if self._wanted(event))
        return self._pending.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def services(self) -> Mapping[str, Service]:
        """What matches, by name, after the events that have arrived. Messages are shared: do not change them."""
        return MappingProxyType(self._services)

    @property
    def complete(self) -> bool:
        """Whether ``services`` is all that matches: from the first snapshot on; never after a caller's cursor."""
        return self._complete

    @property
    def connected(self) -> bool:
        """Whether the stream is open and has said something."""
        return self._call is not None and self.last_error is None and self.last_heard > 0

    @property
    def next_cursor(self) -> str:
        """What ``cursor`` becomes once the events that were given so far are handled.

        Empty where the last of them has others of its message behind it, since there is no going on between them.
        """
        return "" if self._pending else self._resume

    async def close(self) -> None:
        """Ends the watch: iterating stops. Idempotent."""
        self._closed = True
        self._hang_up()

    async def next_events(self) -> list[Event]:
        """Waits for the next message; gives its events, or the difference that a snapshot brings.

        The list is empty where time has passed and nothing happened (a bookmark), and while a snapshot arrives.
        """
        while True:
            try:
                message = await self._read()
            except CursorExpired as error:
                self._hang_up()
                if self._resume and not self._complete:
                    raise
                self.last_error = error
                if not self._resume:  # within a snapshot: the store was replaced meanwhile
                    await self._wait(error)
                self._resume = ""
            except RegistryError as error:
                self._hang_up()
                if self._closed:
                    return []
                if not may_resume(error) and not self._only_expired(error):
                    raise
                self.last_error = error
                await self._wait(error)
            else:
                self.last_heard = time.monotonic()
                self.last_error = None
                self._failures = 0
                return self._take(message)

    def _only_expired(self, error: RegistryError) -> bool:
        """Whether a token that was good ended under an open stream, and there may be another one by now."""
        return (
            isinstance(error, Unauthenticated)
            and self._channels.renews_token
            and self.last_heard > 0
            and not self._failures
        )

    async def _read(self) -> WatchEventsResponse:
        silence = _SILENT_BOOKMARKS * self._bookmark_interval
        if self._call is None:
            self._call = self._open()
            silence += _CONNECTING
        try:
            async with asyncio.timeout(silence):
                message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error) from error
        except TimeoutError:
            raise DeadlineExceeded(f"nothing was heard for {silence:g} s") from None
        except asyncio.CancelledError:
            # gRPC cancels the stream with the one who waits for it. Nothing is lost: the next one resumes.
            self._call = None
            if being_cancelled():
                raise
            raise RegistryUnavailable("the stream was closed") from None
        if isinstance(message, WatchEventsResponse):
            return message
        raise RegistryUnavailable("the registry ended the stream")

    def _open(self) -> "_Call":
        request = WatchEventsRequest(
            filter=self._filter,
            cursor=self._resume,
            include_snapshot=not self._resume,
            bookmark_interval=duration(self._bookmark_interval),
        )
        self._arriving = None if self._resume else {}
        self._target = self._channels.target
        return self._channels.stub.WatchEvents(request, metadata=self._channels.metadata())

    def _hang_up(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def _wait(self, error: RegistryError) -> None:
        if isinstance(error, WatcherTooSlow):
            return  # what was missed waits to be read
        self._failures += 1
        another = self._channels.give_up(self._target)
        if not (another and self._failures < len(self._channels)):
            await asyncio.sleep(self._backoff.delay(self._failures))

    def _take(self, message: WatchEventsResponse) -> list[Event]:
        if self._arriving is not None:
            for event in message.events:
                if event.type == EventType.EVENT_TYPE_SERVICE_SNAPSHOT:
                    self._arriving[event.service.name] = event.service
            if not message.snapshot_complete:
                return []  # a cursor from within a snapshot is not good to resume from
            arrived, self._arriving = self._arriving, None
            return self._replace(arrived, message)
        for event in message.events:
            if event.reason == EventReason.EVENT_REASON_RESYNC:
                self._session.restart(event.revision)
            self._session.saw(event.revision)
            if event.type in _GONE:
                self._services.pop(event.service.name, None)
            elif event.HasField("service"):
                self._services[event.service.name] = event.service
        self._resume = message.cursor
        return list(message.events)

    def _replace(self, arrived: dict[str, Service], message: WatchEventsResponse) -> list[Event]:
        """Takes a whole snapshot as the state; gives it as the caller wants it."""
        if self._complete:
            self._session.restart(message.revision)
            events = difference.between(self._services, arrived, message.revision)
        elif self._include_snapshot:
            events = difference.snapshot(arrived)
        else:
            events = []
        self._services = arrived
        self._complete = True
        self._resume = message.cursor
        return events

    def _wanted(self, event: Event) -> bool:
        # The types are not left to the registry: the state could not be known from some of the events.
        return not self._types or event.type in self._types or event.type == EventType.EVENT_TYPE_SERVICE_SNAPSHOT
