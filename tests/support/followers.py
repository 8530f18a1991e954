"""A follower without a server process, and other writers to the same Redis."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from redis import Redis as SyncRedis
from redis.asyncio import Redis

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsResponse
from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from ossa_common.cursors import Cursor
from ossa_common.violations import Violation
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.errors import RegistryError
from registry_server.model.filters import compile_filter
from registry_server.replication.follower import Follower
from registry_server.replication.repair import Repairer
from registry_server.runtime.clock import system_clock
from registry_server.runtime.tasks import cancel
from registry_server.security.identity import NO_CLAIM
from registry_server.store import Position, RedisStore, StoreLimits
from registry_server.watch import WatchHub, WatchLimits
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service

TIMEOUT = 30.0
QUICK = StoreLimits(tail_block_seconds=0.05, repair_gather_seconds=0.1, repair_turn_seconds=1.0)
EVERYTHING = compile_filter(ServiceFilter(), "filter", list[Violation]())
REGISTERED = EventType.EVENT_TYPE_SERVICE_REGISTERED
UPDATED = EventType.EVENT_TYPE_SERVICE_UPDATED
UNREGISTERED = EventType.EVENT_TYPE_SERVICE_UNREGISTERED
SNAPSHOT = EventType.EVENT_TYPE_SERVICE_SNAPSHOT
CLIENT_REQUEST = EventReason.EVENT_REASON_CLIENT_REQUEST
RESYNC = EventReason.EVENT_REASON_RESYNC


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


class Writer:
    """Writes to the same Redis as another process would."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store
        self.epoch = ""
        self.claim = NO_CLAIM
        self.revisions: dict[str, int] = {}

    async def refresh(self) -> None:
        """Load epoch and revisions from the store, which may have been replaced."""
        await self.store.reconnect()
        self.epoch = (await self.store.reader.resolve_head()).epoch
        pages = [page async for page in self.store.reader.scan_records()]
        services = [Service.FromString(wire) for page in pages for wire in page.values()]
        self.revisions = {service.name: service.revision for service in services}

    async def trim_stream(self) -> None:
        """Trim the event stream to its two newest entries."""
        await self.store._client.xtrim(self.store.keys.events, maxlen=2, approximate=False)

    async def write_services(self, *names: str, ttl: float = 0, **fields: Any) -> None:
        for name in names:
            outcome = await self.store.writer.write_service(
                small_service(name, **{"group": name, **fields}),
                seen=Position(self.epoch, 0),
                expected=self.revisions.get(name, 0),
                type=UPDATED if name in self.revisions else REGISTERED,
                reason=CLIENT_REQUEST,
                ttl=ttl,
                renew=True,
                claim=self.claim,
            )
            assert isinstance(outcome, int)
            self.revisions[name] = outcome

    async def remove_services(self, *names: str) -> None:
        for name in names:
            outcome = await self.store.writer.delete_service(
                name, seen=Position(self.epoch, 0), expected=self.revisions.pop(name), reason=CLIENT_REQUEST
            )
            assert isinstance(outcome, int)


class Observer:
    """Applies all events to a dict. Fails on repeated or reordered events and on events of unknown services."""

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
                async for batch in watcher:
                    message = WatchEventsResponse.FromString(batch.wire)
                    for event in message.events:
                        self._apply(event)
                    if message.snapshot_complete or cursor is not None:
                        self._ready.set()
        except RegistryError as error:
            self.end = error

    def _apply(self, event: Event) -> None:
        name = event.service.name
        if event.error:  # REGISTRY_ERROR has no service
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

    def received(self) -> list[tuple[int, str, int]]:
        return [(event.type, event.service.name, event.reason) for event in self.events]


@asynccontextmanager
async def writing(url: str, limits: StoreLimits = QUICK, *, events_max_length: int = 10_000) -> AsyncIterator[Writer]:
    """Yield a second writer to the store."""
    store = RedisStore(url, timeout=5.0, limits=limits, events_max_length=events_max_length)
    await store.open()
    try:
        writer = Writer(store)
        await writer.refresh()
        yield writer
    finally:
        await store.close()


class FollowerProcess:
    """The follower of one registry process."""

    def __init__(
        self, url: str, *, history: int = 10_000, fits: bool = True, repair: bool = False, limits: StoreLimits = QUICK
    ) -> None:
        self._url = url
        self.store = RedisStore(url, timeout=5.0, limits=limits)
        self.replica = Replica(history)
        self.hub = WatchHub(self.replica, Discovery(self.replica), WatchLimits(100_000, 1 << 30))
        self.connections: list[bool] = []
        self.connected_at: list[Position] = []
        """Position of the replica at each notification that the store is connected."""
        self.follower = Follower(
            self.store,
            self.replica,
            clock=system_clock,
            on_connection=self._on_connection,
            on_resync=self.hub.prepare_resync if fits else lambda _: self.hub.expire_all(),
            retry_seconds=(0.05, 0.05),
            repairer=Repairer(self.store, self.replica, default_ttl=60, poll_seconds=0.02) if repair else None,
        )
        self._task: asyncio.Task[None] | None = None

    def _on_connection(self, *, connected: bool) -> None:
        self.connections.append(connected)
        if connected:
            self.connected_at.append(self.replica.position)

    async def catch_up(self) -> None:
        """Wait until the replica equals the store at the newest position. There must be no concurrent writes."""
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

    async def pause(self) -> None:
        """Stop following, like a suspended process; ``start`` resumes."""
        assert self._task is not None
        task, self._task = self._task, None
        await cancel([task])
        with suppress(asyncio.CancelledError):  # any other exception ended the follower
            task.result()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FollowerProcess"]:
        self.start()
        try:
            yield self
        finally:
            if self._task is not None:
                await self.pause()
            await self.store.close()


class Backup:
    """A copy of the data directory of Redis."""

    def __init__(self, process: RedisProcess, directory: Path, copy: Path) -> None:
        self._process, self._directory, self._copy = process, directory, copy

    def copy_files(self) -> None:
        """Copy the data directory once it contains every acknowledged write.

        Redis usually writes its append-only file before it responds, but not while an earlier fsync is still running.
        """
        with SyncRedis(port=self._process.port, decode_responses=True) as client:
            info: Any = client.info("persistence")
            while info["aof_buffer_length"]:
                time.sleep(0.001)
                info = client.info("persistence")
        shutil.copytree(self._directory, self._copy)

    @asynccontextmanager
    async def restored(self) -> AsyncIterator[Writer]:
        """Kill Redis and restart it from the copy. Within the block, writes are not seen by any follower."""
        self._process.kill()
        await self._process.stop()
        shutil.rmtree(self._directory)
        shutil.copytree(self._copy, self._directory)
        async with RedisProcess(self._directory) as restored, writing(restored.url) as writer:
            yield writer
        await self._process.start()
