"""``Load``: all clients of a run at once, and the history that they write."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import grpc

from registry_server.tasks import cancel
from tests.faults.suite.clients import Beater, Client, Owner, Reader, Sharer, Worker
from tests.faults.suite.crowd import Crowd
from tests.faults.suite.history import Belief, History
from tests.faults.suite.stage import PATIENCE, PROCESSES, Stage
from tests.faults.suite.watcher import Watcher

CLIENTS: dict[type[Owner | Sharer | Reader | Beater], int] = {Owner: 3, Sharer: 3, Reader: 2, Beater: 2}
"""How many of each kind there are."""
_PAUSE = 0.03
"""Seconds, about, between two calls of a client."""
_LARGE = 48 * 1024
"""Bytes of a large service."""
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class Load:
    """All clients of a run, and the history that they write."""

    def __init__(self, stage: Stage, chance: random.Random, history: History) -> None:
        self.stage, self.history = stage, history
        self.chance = chance
        self.pace = 1.0
        """How much longer than usual clients rest."""
        self.newest: tuple[int, str] = (0, "shared-0")
        """Highest revision that anybody was answered, and the name that was written with it."""
        self.acknowledged = 0
        """Writes."""
        self.names: list[str] = []
        self._versions = 0
        self._clients: list[asyncio.Task[None]] = []
        self._watchers: list[Watcher] = []
        self._watching: list[asyncio.Task[None]] = []
        self._over = asyncio.Event()
        self.crowd = Crowd(self.channel)

    def version(self) -> str:
        """A version that nobody has written yet."""
        self._versions += 1
        return f"1.{self._versions}.0"

    @property
    def goes_on(self) -> bool:
        """Whether clients are to make another call."""
        return not self._over.is_set()

    async def pause(self, seconds: float = _PAUSE) -> None:
        """Waits for about so long, or for the end of the load."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * self.pace * self.chance.uniform(0.2, 1.8)):
                await self._over.wait()

    async def start(self) -> None:
        """Lets all clients begin; returns once each watcher has its snapshot."""
        self._watchers = [Watcher(self, "watcher-0", 0), Watcher(self, "watcher-1", 1), Watcher(self, "roamer", None)]
        self._watching = [asyncio.create_task(watcher.run()) for watcher in self._watchers]
        async with asyncio.timeout(PATIENCE):
            while not all(watcher.position for watcher in self._watchers):
                self._check_watchers()
                await asyncio.sleep(0.01)
        clients: list[Worker] = [
            kind(self, f"{kind.__name__.lower()}-{i}") for kind, count in CLIENTS.items() for i in range(count)
        ]
        self._clients = [asyncio.create_task(client.run()) for client in clients]

    async def more_writes(self, count: int) -> None:
        """Waits until so many more writes are acknowledged, or until that is given up."""
        goal = self.acknowledged + count
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while self.acknowledged < goal:
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Lets clients finish the calls that they have made."""
        self._over.set()
        await asyncio.gather(*self._clients)

    async def settle(self) -> None:
        """Waits until each process takes a write and all watchers have seen all; then asks what everybody believes."""
        last = Client(self, "last")
        for process in range(PROCESSES):
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    while (await last.register(f"last-{process}", process)).outcome != "ok":
                        await asyncio.sleep(0.1)
                    continue
            self.history.complaints.append(f"process {process} took no write within {PATIENCE:.0f} s after the faults")
            return
        try:
            async with asyncio.timeout(PATIENCE):
                # Again if something happens meanwhile: calls that were given up may be on their way yet.
                while not self.history.beliefs or self.history.beliefs[0] != await self.stage.belief_of_redis():
                    redis = await self.stage.belief_of_redis()
                    believed = [await last.believes(process, redis) for process in range(PROCESSES)]
                    self.history.beliefs = [redis, *believed]
                    await self._watched(redis)
        except TimeoutError:
            at = {watcher.name: watcher.position for watcher in self._watchers}
            where = {each.who: (each.epoch, each.revision) for each in self.history.beliefs}
            self.history.complaints.append(f"not all came to one revision: {where}, {at}")
        newest = max((belief.revision for belief in self.history.beliefs), default=0)
        self.history.followers += await self.crowd.settle(newest, PATIENCE)
        await last.close()

    async def _watched(self, belief: Belief) -> None:
        while any(watcher.position != (belief.epoch, belief.revision) for watcher in self._watchers):
            self._check_watchers()
            if await self.stage.belief_of_redis() != belief:
                return
            await asyncio.sleep(0.05)

    async def register_at_once(self, names: Sequence[str]) -> None:
        """Registers many services, each by a call of its own, all at the same time."""
        client = Client(self, "crowd")
        await asyncio.gather(*(client.register(name, i % PROCESSES, deadline=PATIENCE) for i, name in enumerate(names)))
        await client.close()

    async def write_much(self) -> None:
        """Registers services that are large, as fast as it can."""
        client = Client(self, "large")
        try:
            while True:
                await client.register(f"large-{client.chance.randrange(4)}", size=_LARGE)
        finally:
            await client.close()

    def channel(self, process: int) -> grpc.aio.Channel:
        """A connection of its own to a process."""
        return grpc.aio.insecure_channel(self.stage.address(process), options=_CHANNEL)

    async def close(self) -> None:
        """Ends all clients."""
        self._over.set()
        await cancel([*self._clients, *self._watching])
        await self.crowd.close()

    def _check_watchers(self) -> None:
        for task in self._watching:
            if task.done():
                task.result()


@asynccontextmanager
async def load(stage: Stage, chance: random.Random, history: History) -> AsyncIterator[Load]:
    """Keeps clients busy until it is stopped or left."""
    subject = Load(stage, chance, history)
    try:
        await subject.start()
        yield subject
    finally:
        await subject.close()
