"""A subscriber that keeps its cursor, resumes from it, and checks the events that it receives."""

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
    """Applies all events to a dict. Fails on the first event that is repeated or out of order."""

    def __init__(self, filter_: ServiceFilter | None = None) -> None:
        self.filter = filter_
        self.state: dict[str, Service] = {}
        self.events: list[Event] = []
        """Every received change, without snapshots."""
        self.cursor = ""
        self.revision = 0
        self.streams = 0
        self.news = asyncio.Event()
        self._call: grpc.aio.UnaryStreamCall[WatchEventsRequest, WatchEventsResponse] | None = None

    async def follow(self, stub: "RegistryServiceAsyncStub") -> None:
        """Watch until cancelled, and resume after every error from which a client may resume."""
        while True:
            request = WatchEventsRequest(cursor=self.cursor, include_snapshot=not self.cursor)
            # Changes that do not match the filter only advance the cursors of bookmarks, for which `reached` waits.
            request.bookmark_interval.FromMilliseconds(200)
            if self.filter is not None:
                request.filter.CopyFrom(self.filter)
            self.streams += 1
            self._call = stub.WatchEvents(request)
            try:
                async for message in self._call:
                    self.apply(message)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RESUMABLE:
                    raise
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                if self._call.cancelled() and not _being_cancelled():
                    continue  # the stream was cancelled by cut(), not this task
                raise

    def cut(self) -> None:
        """End the stream, as a lost connection would."""
        if self._call is not None:
            self._call.cancel()

    def apply(self, message: WatchEventsResponse) -> None:
        """Apply a message to the state."""
        if any(event.reason == EventReason.EVENT_REASON_RESYNC for event in message.events):
            self.revision = 0  # the events may belong to a new epoch, whose revisions start over
        for event in message.events:
            name = event.service.name
            if event.type == EventType.EVENT_TYPE_SERVICE_SNAPSHOT:
                assert name not in self.state
                self.state[name] = event.service
                continue
            last = self.revision
            # All resync events of a message share one revision.
            resync = event.reason == EventReason.EVENT_REASON_RESYNC
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
            return  # cursors within a snapshot cannot be used to resume
        self.cursor, self.revision = message.cursor, message.revision
        self.news.set()

    async def reached(self, revision: int, timeout_seconds: float = 30) -> None:
        """Wait until a revision is reached."""
        async with asyncio.timeout(timeout_seconds):
            while self.revision < revision:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def following(
    stub: "RegistryServiceAsyncStub", filter_: ServiceFilter | None = None
) -> AsyncIterator[Subscriber]:
    """Yield a subscriber that has received its snapshot and watches until the block is left."""
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
