"""``Load``: the concurrent clients of a run, and the history that they record."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import grpc

from registry_server.runtime.tasks import cancel
from tests.faults.suite.clients import Client, Heartbeater, Owner, Reader, Sharer, Worker
from tests.faults.suite.crowd import Crowd
from tests.faults.suite.history import FinalState, History
from tests.faults.suite.stage import PROCESSES, RECOVERY_TIMEOUT_SECONDS, Stage
from tests.faults.suite.watcher import Watcher

CLIENTS: dict[type[Owner | Sharer | Reader | Heartbeater], int] = {Owner: 3, Sharer: 3, Reader: 2, Heartbeater: 2}
"""Number of clients of each kind."""
_PAUSE_SECONDS = 0.03
"""Mean pause between two calls of a client."""
_LARGE_SERVICE_BYTES = 48 * 1024
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class Load:
    """The clients of a run, and the history that they record."""

    def __init__(self, stage: Stage, rng: random.Random, history: History) -> None:
        self.stage, self.history = stage, history
        self.rng = rng
        self.pace = 1.0
        """Factor of the pauses between calls."""
        self.newest: tuple[int, str] = (0, "shared-0")
        """Highest revision in a response to a write, and the written name."""
        self.acknowledged = 0
        """Number of acknowledged writes."""
        self.names: list[str] = []
        self._versions = 0
        self._clients: list[asyncio.Task[None]] = []
        self._watchers: list[Watcher] = []
        self._watching: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self.crowd = Crowd(self.channel)

    def version(self) -> str:
        """Return a unique version."""
        self._versions += 1
        return f"1.{self._versions}.0"

    @property
    def running(self) -> bool:
        """Return whether clients make further calls."""
        return not self._stopping.is_set()

    async def pause(self, seconds: float = _PAUSE_SECONDS) -> None:
        """Wait for a random time around ``seconds``, or until the load stops."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * self.pace * self.rng.uniform(0.2, 1.8)):
                await self._stopping.wait()

    async def start(self) -> None:
        """Start all clients, after each watcher has received its snapshot."""
        self._watchers = [Watcher(self, "watcher-0", 0), Watcher(self, "watcher-1", 1), Watcher(self, "roamer", None)]
        self._watching = [asyncio.create_task(watcher.run()) for watcher in self._watchers]
        async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS):
            while not all(watcher.position for watcher in self._watchers):
                self._check_watchers()
                await asyncio.sleep(0.01)
        clients: list[Worker] = [
            kind(self, f"{kind.__name__.lower()}-{i}") for kind, count in CLIENTS.items() for i in range(count)
        ]
        self._clients = [asyncio.create_task(client.run()) for client in clients]

    async def more_writes(self, count: int) -> None:
        """Wait until ``count`` more writes are acknowledged, or until the timeout."""
        goal = self.acknowledged + count
        with suppress(TimeoutError):
            async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS):
                while self.acknowledged < goal:
                    await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Stop the clients after their current calls."""
        self._stopping.set()
        await asyncio.gather(*self._clients)

    async def settle(self) -> None:
        """Wait until each process accepts a write and all watchers are caught up; record the final states."""
        last = Client(self, "last")
        for process in range(PROCESSES):
            with suppress(TimeoutError):
                async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS):
                    while (await last.register(f"last-{process}", process)).outcome != "ok":
                        await asyncio.sleep(0.1)
                    continue
            self.history.problems.append(
                f"process {process} accepted no write within {RECOVERY_TIMEOUT_SECONDS:.0f} s after the faults"
            )
            return
        try:
            async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS):
                # Repeat if the state changes: cancelled calls may still take effect.
                while (
                    not self.history.final_states or self.history.final_states[0] != await self.stage.state_of_redis()
                ):
                    redis = await self.stage.state_of_redis()
                    processes = [await last.final_state(process, redis) for process in range(PROCESSES)]
                    self.history.final_states = [redis, *processes]
                    self.history.accounts = [
                        await last.account(process, state) for process, state in enumerate(processes)
                    ]
                    await self._wait_for_watchers(redis)
        except TimeoutError:
            watchers = {watcher.name: watcher.position for watcher in self._watchers}
            states = {each.owner: (each.epoch, each.revision) for each in self.history.final_states}
            self.history.problems.append(
                f"processes and watchers did not reach the same revision: {states}, {watchers}"
            )
        newest = max((final.revision for final in self.history.final_states), default=0)
        self.history.followers += await self.crowd.settle(newest, RECOVERY_TIMEOUT_SECONDS)
        await last.close()

    async def _wait_for_watchers(self, final: FinalState) -> None:
        while any(watcher.position != (final.epoch, final.revision) for watcher in self._watchers):
            self._check_watchers()
            if await self.stage.state_of_redis() != final:
                return
            await asyncio.sleep(0.05)

    async def register_at_once(self, names: Sequence[str]) -> None:
        """Register many services concurrently, each with a separate call."""
        client = Client(self, "crowd")
        await asyncio.gather(
            *(client.register(name, i % PROCESSES, deadline=RECOVERY_TIMEOUT_SECONDS) for i, name in enumerate(names))
        )
        await client.close()

    async def write_large_services(self) -> None:
        """Register large services, as fast as possible."""
        client = Client(self, "large")
        try:
            while True:
                await client.register(f"large-{client.rng.randrange(4)}", size=_LARGE_SERVICE_BYTES)
        finally:
            await client.close()

    def channel(self, process: int) -> grpc.aio.Channel:
        """Return a channel with a separate connection to a process."""
        return grpc.aio.insecure_channel(self.stage.address(process), options=_CHANNEL)

    async def close(self) -> None:
        """Cancel all clients."""
        self._stopping.set()
        await cancel([*self._clients, *self._watching])
        await self.crowd.close()

    def _check_watchers(self) -> None:
        for task in self._watching:
            if task.done():
                task.result()


@asynccontextmanager
async def load(stage: Stage, rng: random.Random, history: History) -> AsyncIterator[Load]:
    """Run the load within the block, unless it is stopped earlier."""
    subject = Load(stage, rng, history)
    try:
        await subject.start()
        yield subject
    finally:
        await subject.close()
