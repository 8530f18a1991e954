"""``Watcher``: watches every change and records the messages."""

import asyncio
import random
import time
from typing import TYPE_CHECKING

import grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa_common.cursors import decode_cursor
from tests.faults.suite.history import Message, ObservedEvent
from tests.faults.suite.stage import PROCESSES

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from tests.faults.suite.load import Load


class Watcher:
    """Watches every change, on one process or, if ``process`` is ``None``, on each in turn. Resumes from its cursor."""

    def __init__(self, load: "Load", name: str, process: int | None) -> None:
        self._load, self.name, self._pinned = load, name, process
        self._rng = random.Random(load.rng.random())
        self._cursor = ""
        self.position: tuple[str, int] | None = None
        """Epoch and revision; ``None`` until the first snapshot is complete."""

    async def run(self) -> None:
        """Watch until cancelled."""
        process = self._pinned or 0
        while True:
            channel = self._load.channel(process)
            timeout = 3600.0 if self._pinned is not None else self._rng.uniform(0.2, 1.0)
            try:
                async with asyncio.timeout(timeout):
                    await self._watch(RegistryServiceStub(channel), process)
            except TimeoutError:
                pass
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.OUT_OF_RANGE:
                    self._cursor = ""  # the cursor has expired: start over
                await asyncio.sleep(0.05)
            finally:
                await channel.close()
            if self._pinned is None:
                process = (process + 1) % PROCESSES

    async def _watch(self, stub: "RegistryServiceAsyncStub", process: int) -> None:
        fresh = not self._cursor
        request = pb.WatchEventsRequest(cursor=self._cursor, include_snapshot=fresh)
        request.bookmark_interval.FromMilliseconds(200)
        within_snapshot = fresh
        async for wire in stub.WatchEvents(request):
            cursor = decode_cursor(wire.cursor)
            events = [observed(event) for event in wire.events]
            self._load.history.messages.append(
                Message(
                    self.name,
                    process,
                    time.time(),
                    cursor.epoch,
                    wire.revision,
                    events,
                    complete=wire.snapshot_complete,
                    fresh=fresh,
                )
            )
            fresh = False
            within_snapshot = within_snapshot and not wire.snapshot_complete
            if not within_snapshot:
                self._cursor, self.position = wire.cursor, (cursor.epoch, wire.revision)


def observed(event: Event) -> ObservedEvent:
    """Return the record of an event."""
    return ObservedEvent(
        EventType.Name(event.type),
        EventReason.Name(event.reason),
        event.service.name,
        event.service.version,
        event.revision,
        event.service.revision,
        event.occurred_at.seconds + event.occurred_at.nanos / 1e9,
    )
