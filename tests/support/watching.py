"""A subscriber as a careful client writes one: it keeps its cursor, resumes from it, and checks what it is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from ossa.registry.v1.service_pb2 import Service, ServiceFilter

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

_GONE = (EventType.EVENT_TYPE_SERVICE_UNREGISTERED, EventType.EVENT_TYPE_SERVICE_UNMATCHED)
_RESUMABLE = (
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class Subscriber:
    """Follows the registry into a dict; fails on the first event that is repeated or out of order."""

    def __init__(self, filter_: ServiceFilter | None = None) -> None:
        self.filter = filter_
        self.state: dict[str, Service] = {}
        self.events: list[Event] = []
        """Every change that it was told of, snapshots left out."""
        self.cursor = ""
        self.revision = 0
        self.streams = 0
        self.news = asyncio.Event()
        self._call: grpc.aio.UnaryStreamCall[WatchEventsRequest, WatchEventsResponse] | None = None

    async def follow(self, stub: "RegistryServiceAsyncStub") -> None:
        """Watches until cancelled; resumes after every end that a client may resume from."""
        while True:
            request = WatchEventsRequest(cursor=self.cursor, include_snapshot=not self.cursor)
            # Changes that do not match show in the cursor of a bookmark alone, and `reached` waits for it.
            request.bookmark_interval.FromMilliseconds(200)
            if self.filter is not None:
                request.filter.CopyFrom(self.filter)
            self.streams += 1
            self._call = stub.WatchEvents(request)
            try:
                async for message in self._call:
                    self.take(message)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RESUMABLE:
                    raise
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if self._call.cancelled() and not _being_cancelled():
                    continue  # it was cut, not us
                raise

    def cut(self) -> None:
        """Cuts the stream, as a lost connection would."""
        if self._call is not None:
            self._call.cancel()

    def take(self, message: WatchEventsResponse) -> None:
        """Applies a message."""
        if any(event.reason == EventReason.EVENT_REASON_RESYNC for event in message.events):
            self.revision = 0  # a difference, perhaps to another epoch, whose revisions count anew
        for event in message.events:
            name = event.service.name
            if event.type == EventType.EVENT_TYPE_SERVICE_SNAPSHOT:
                assert name not in self.state
                self.state[name] = event.service
                continue
            last = self.revision
            resync = event.reason == EventReason.EVENT_REASON_RESYNC  # all of these are of one revision
            assert event.revision > last or resync, f"revision {event.revision} after {last}"
            self.revision = event.revision
            self.events.append(event)
            if event.type in _GONE:
                assert name in self.state
                del self.state[name]
            else:
                self.state[name] = event.service
        assert message.cursor
        assert message.revision >= self.revision
        if message.events and not message.snapshot_complete and not self.cursor:
            return  # within a snapshot: its cursors are not good to resume from
        self.cursor, self.revision = message.cursor, message.revision
        self.news.set()

    async def reached(self, revision: int, within: float = 30) -> None:
        """Waits until it has seen a revision."""
        async with asyncio.timeout(within):
            while self.revision < revision:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def following(
    stub: "RegistryServiceAsyncStub", filter_: ServiceFilter | None = None
) -> AsyncIterator[Subscriber]:
    """A subscriber that follows until the context is left and has its snapshot already."""
    subscriber = Subscriber(filter_)
    task = asyncio.create_task(subscriber.follow(stub))
    try:
        waiting = asyncio.create_task(subscriber.news.wait())
        async with asyncio.timeout(30):
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        yield subscriber
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
