"""Agents and watchers that keep running across server restarts, as a separate process.

``python -m benchmarks.rolling_fleet ADDRESS SERVICES STREAMS WATCHERS CHANGES_EVERY`` registers services, renews their
leases, changes one after the other and watches them until it reads a line from standard input; then it prints its
counters as one line of JSON.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import grpc

from benchmarks.fleet import services
from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub  # only in the type stubs

LEASE_SECONDS: Final = 30
HEARTBEAT_SECONDS: Final = LEASE_SECONDS / 3
_BATCH: Final = 250
_WATCHERS_PER_CONNECTION: Final = 50


class Fleet:
    """Agents and watchers that retry after UNAVAILABLE and after resets, and raise on any other error.

    The fleet counts lost leases, and changes that a watcher misses or receives twice.
    """

    def __init__(self, address: str, *, changes_every: float) -> None:
        """Create a fleet for a server; ``changes_every`` is the number of seconds between two changes of services."""
        self._address = address
        self._changes_every = changes_every
        self._names: list[str] = []
        self._max_revision = 0  # highest revision in a response
        self._revisions: dict[int, int] = {}  # of each watcher, by its number
        self.renewed = 0
        """Number of renewed leases."""
        self.lost = 0
        """Number of leases that the server no longer knew."""
        self.missed_or_repeated = 0
        """Number of changes that a watcher missed or received twice."""
        self.events = 0
        """Number of changes that watchers received."""
        self.resumed: set[int] = set()
        """Numbers of the watchers that resumed from their cursor."""
        self.unavailable: Counter[str] = Counter()
        """Calls and streams that ended with UNAVAILABLE, counted by error message."""
        self.reset = 0
        """Calls and streams that reached a server while it stopped: gRPC resets them (CANCELLED, without a reason)."""

    async def run(self, count: int, streams: int, watchers: int, stop: asyncio.Event, ready: asyncio.Event) -> None:
        """Register the fleet and run it until ``stop`` is set; then wait until every watcher has every change."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            channels = [await stack.enter_async_context(_connection(self._address)) for _ in range(1 + streams)]
            writer, *beating = [RegistryServiceStub(channel) for channel in channels]
            await self._register(writer, count)
            share = -(-count // streams)
            tasks = [
                group.create_task(self._beat(stub, self._names[i * share : (i + 1) * share]))
                for i, stub in enumerate(beating)
            ]
            for first in range(0, watchers, _WATCHERS_PER_CONNECTION):
                stub = RegistryServiceStub(await stack.enter_async_context(_connection(self._address)))
                numbers = range(first, min(first + _WATCHERS_PER_CONNECTION, watchers))
                tasks += [group.create_task(self._watch(stub, number)) for number in numbers]
            while len(self._revisions) < watchers:  # noqa: ASYNC110 - polling is precise enough
                await asyncio.sleep(0.05)
            changing = group.create_task(self._change(writer, stop))
            ready.set()
            await stop.wait()
            await changing
            async with asyncio.timeout(60):
                while min(self._revisions.values(), default=self._max_revision) < self._max_revision:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()

    def counters(self) -> dict[str, object]:
        """Return the counters as a JSON-compatible dict."""
        return {
            "renewed": self.renewed,
            "lost": self.lost,
            "missed_or_repeated": self.missed_or_repeated,
            "events": self.events,
            "resumed": len(self.resumed),
            "unavailable": self.unavailable,
            "reset": self.reset,
        }

    async def _register(self, stub: "RegistryServiceAsyncStub", count: int) -> None:
        fleet = list(services(count))
        for service in fleet:
            service.ttl.FromSeconds(LEASE_SECONDS)
            service.health_check.heartbeat.SetInParent()
        self._names = [service.name for service in fleet]
        for at in range(0, count, _BATCH):
            answer = await stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=fleet[at : at + _BATCH]))
            for result in answer.results:
                if not result.HasField("service"):
                    raise RuntimeError(f"registration failed: {result.status.message}")
                self._max_revision = max(self._max_revision, result.service.revision)

    async def _beat(self, stub: "RegistryServiceAsyncStub", names: Sequence[str]) -> None:
        async def messages() -> AsyncIterator[pb.KeepAliveRequest]:
            while True:
                yield pb.KeepAliveRequest(names=names)
                await asyncio.sleep(HEARTBEAT_SECONDS * random.uniform(0.8, 1.0))

        while True:
            try:
                async for answer in stub.KeepAlive(messages()):
                    self.renewed += answer.renewed_count
                    self.lost += len(answer.unknown_names)
            except grpc.aio.AioRpcError as error:
                await self._pause(error)

    async def _watch(self, stub: "RegistryServiceAsyncStub", number: int) -> None:
        cursor = ""
        while True:
            try:
                async for message in stub.WatchEvents(pb.WatchEventsRequest(cursor=cursor)):
                    last = self._revisions.get(number, message.revision - len(message.events))
                    for event in message.events:
                        # The watch has no filter, so revisions are consecutive.
                        self.missed_or_repeated += event.revision != last + 1
                        last = event.revision
                    self.missed_or_repeated += message.revision != last
                    self.events += len(message.events)
                    cursor, self._revisions[number] = message.cursor, last
            except grpc.aio.AioRpcError as error:
                await self._pause(error)
            self.resumed.add(number)

    async def _change(self, stub: "RegistryServiceAsyncStub", stop: asyncio.Event) -> None:
        """Change one service after another. A failed update is repeated, which is idempotent."""
        request = pb.UpdateServiceRequest()
        request.update_mask.paths.append("metadata.description")
        count = 0
        while not stop.is_set():
            count += 1
            request.service.name = self._names[count % len(self._names)]
            request.service.metadata.description = f"change {count}"
            try:
                self._max_revision = max(self._max_revision, (await stub.UpdateService(request)).service.revision)
            except grpc.aio.AioRpcError as error:
                await self._pause(error)
                count -= 1
                continue
            await asyncio.sleep(self._changes_every)

    async def _pause(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() == grpc.StatusCode.CANCELLED:  # by the server: this process cancels no call
            self.reset += 1
        elif error.code() == grpc.StatusCode.UNAVAILABLE:
            self.unavailable[error.details() or ""] += 1
        else:
            raise error
        await asyncio.sleep(random.uniform(0.05, 0.5))


def _connection(address: str) -> grpc.aio.Channel:
    """Return a channel with a separate connection and a short reconnect backoff."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.lb_policy_name", "round_robin"),  # an address such as ipv4:HOST:PORT,HOST:PORT names several servers
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
    return grpc.aio.insecure_channel(address, options=options)


async def _main(address: str, count: int, streams: int, watchers: int, changes_every: float) -> None:
    fleet, stop, ready = Fleet(address, changes_every=changes_every), asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(fleet.run(count, streams, watchers, stop, ready))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
    print("ready", flush=True)
    stdin_line = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    await asyncio.wait((running, stdin_line), return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    await running
    print(json.dumps(fleet.counters()), flush=True)


if __name__ == "__main__":
    _services, _streams, _watchers = map(int, sys.argv[2:5])
    asyncio.run(_main(sys.argv[1], _services, _streams, _watchers, float(sys.argv[5])))
