"""What follows Redis in a process, without the process; and others who write to that Redis, or take it away."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsResponse
from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.errors import RegistryError, Violation
from registry_server.model.filters import compile_filter
from registry_server.model.tokens import Cursor
from registry_server.replication.follower import Follower
from registry_server.replication.repair import Repairer
from registry_server.runtime.clock import system_clock
from registry_server.runtime.tasks import cancel
from registry_server.security.identity import NO_CLAIM
from registry_server.store import Position, RedisStore
from registry_server.watch import WatchHub, WatchLimits, fits_one_message
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service

TIMEOUT = 30.0
EVERYTHING = compile_filter(ServiceFilter(), "filter", list[Violation]())
REGISTERED = EventType.EVENT_TYPE_SERVICE_REGISTERED
UPDATED = EventType.EVENT_TYPE_SERVICE_UPDATED
UNREGISTERED = EventType.EVENT_TYPE_SERVICE_UNREGISTERED
SNAPSHOT = EventType.EVENT_TYPE_SERVICE_SNAPSHOT
CLIENT_REQUEST = EventReason.EVENT_REASON_CLIENT_REQUEST
RESYNC = EventReason.EVENT_REASON_RESYNC


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not holds():
            await asyncio.sleep(0.005)


class Writer:
    """Another process that writes to the same Redis."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store
        self.epoch = ""
        self.claim = NO_CLAIM
        self.revisions: dict[str, int] = {}

    async def learn(self) -> None:
        """Takes over what the store has, which may have been another one until now."""
        await self.store.reconnect()
        self.epoch = (await self.store.head()).epoch
        services = [Service.FromString(wire) async for page in self.store.records() for wire in page]
        self.revisions = {service.name: service.revision for service in services}

    async def forget_past(self) -> None:
        """Trims the stream to its two newest events."""
        await self.store._client.xtrim(self.store.keys.events, maxlen=2, approximate=False)

    async def put(self, *names: str, ttl: float = 0, **fields: Any) -> None:
        for name in names:
            outcome = await self.store.put(
                small_service(name, **{"group": name, **fields}),
                epoch=self.epoch,
                expected=self.revisions.get(name, 0),
                type=UPDATED if name in self.revisions else REGISTERED,
                reason=CLIENT_REQUEST,
                ttl=ttl,
                renew=True,
                claim=self.claim,
            )
            assert isinstance(outcome, int)
            self.revisions[name] = outcome

    async def delete(self, *names: str) -> None:
        for name in names:
            outcome = await self.store.delete(
                name, epoch=self.epoch, expected=self.revisions.pop(name), reason=CLIENT_REQUEST
            )
            assert isinstance(outcome, int)


class Observer:
    """Watches everything into a dict; fails on what was told twice, out of order, or of a service never told of."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}
        self.events: list[Event] = []
        self.end: RegistryError | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @asynccontextmanager
    async def watching(self, hub: WatchHub, cursor: Cursor | None = None) -> AsyncIterator[None]:
        self._task = asyncio.create_task(self._watch(hub, cursor))
        await eventually(lambda: self._ready.is_set() or self.end is not None)
        yield
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _watch(self, hub: WatchHub, cursor: Cursor | None) -> None:
        try:
            with await hub.open_watch(EVERYTHING, cursor=cursor, snapshot=True) as watcher:
                async for wire in watcher:
                    message = WatchEventsResponse.FromString(wire)
                    for event in message.events:
                        self._take(event)
                    if message.snapshot_complete or cursor is not None:
                        self._ready.set()
        except RegistryError as error:
            self.end = error

    def _take(self, event: Event) -> None:
        name = event.service.name
        if event.error:  # of the registry itself
            self.events.append(event)
            return
        if event.type in (SNAPSHOT, REGISTERED):
            assert name not in self.state
        else:
            assert name in self.state
        if event.type == UNREGISTERED:
            del self.state[name]
        else:
            self.state[name] = event.service.SerializeToString(deterministic=True)
        if event.type != SNAPSHOT:
            if event.reason != RESYNC and self.events:
                assert event.revision == self.events[-1].revision + 1
            self.events.append(event)

    def told(self) -> list[tuple[int, str, int]]:
        return [(event.type, event.service.name, event.reason) for event in self.events]


@asynccontextmanager
async def writing(url: str) -> AsyncIterator[Writer]:
    """Somebody else who writes to the store."""
    store = RedisStore(url, timeout=5.0)
    await store.open()
    try:
        writer = Writer(store)
        await writer.learn()
        yield writer
    finally:
        await store.close()


class Process:
    """What follows the store in one process of the registry."""

    def __init__(self, url: str, *, history: int = 10_000, fits: bool = True, repair: bool = False) -> None:
        self._url = url
        self.store = RedisStore(url, timeout=5.0)
        self.replica = Replica(history)
        self.hub = WatchHub(self.replica, Discovery(self.replica), WatchLimits(100_000, 1 << 30))
        self.connections: list[bool] = []
        self.connected_at: list[Position] = []
        """Where the replica stood each time that the store was said to be connected."""
        self.follower = Follower(
            self.store,
            self.replica,
            clock=system_clock,
            on_connection=self._on_connection,
            on_resync_too_large=self.hub.expire_all,
            fits_one_message=lambda changes: fits and fits_one_message(changes),
            repairer=Repairer(self.store, self.replica, default_ttl=60) if repair else None,
        )
        self._task: asyncio.Task[None] | None = None

    def _on_connection(self, *, connected: bool) -> None:
        self.connections.append(connected)
        if connected:
            self.connected_at.append(self.replica.position)

    async def catch_up(self) -> None:
        """Waits until the replica is equal to the store, at the newest position; nobody may be writing."""
        keys = self.store.keys
        async with asyncio.timeout(TIMEOUT), Redis.from_url(self._url) as client:
            while True:
                epoch: Any = await client.get(keys.epoch)
                revision: Any = await client.get(keys.revision)
                position = Position((epoch or b"").decode(), int(revision or 0))
                if self.follower.connected and self.replica.position == position:
                    break
                await asyncio.sleep(0.005)
            stored = set(await client.hvals(keys.records))
        assert {record.wire for record in self.replica.records.values()} == stored

    def start(self) -> None:
        self._task = asyncio.create_task(self.follower.run())

    async def stall(self) -> None:
        """Stops following, like a process that is suspended; ``start`` goes on."""
        assert self._task is not None
        task, self._task = self._task, None
        await cancel([task])
        with suppress(asyncio.CancelledError):  # anything else is what ended it
            task.result()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Process"]:
        self.start()
        try:
            yield self
        finally:
            if self._task is not None:
                await self.stall()
            await self.store.close()


class Backup:
    """A copy of the files of Redis."""

    def __init__(self, process: RedisProcess, directory: Path, copy: Path) -> None:
        self._process, self._directory, self._copy = process, directory, copy

    def take(self) -> None:
        """Everything that was acknowledged is in the files already: Redis writes them before it answers."""
        shutil.copytree(self._directory, self._copy)

    @asynccontextmanager
    async def restored(self) -> AsyncIterator[Writer]:
        """Redis dies and comes back from the copy; meanwhile others can write to it, whom nobody followed."""
        self._process.kill()
        await self._process.stop()
        shutil.rmtree(self._directory)
        shutil.copytree(self._copy, self._directory)
        async with RedisProcess(self._directory) as elsewhere, writing(elsewhere.url) as other:
            yield other
        await self._process.start()
