"""``Churn``: agents that come and go, and readers, for a long run. They check leases and count what calls return."""

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Self

import grpc

from benchmarks.fleet import name_of
from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_server.runtime.tasks import cancel
from tests.support.samples import small_service

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

TTL_SECONDS: Final = 5
_HEARTBEAT_SECONDS: Final = 1.5
_MAX_HEARTBEATS: Final = 8
_READERS: Final = 4
_DEADLINE_SECONDS: Final = 15.0
_RETRIED: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
"""A server that stops resets calls that reach it last: CANCELLED. This process cancels none before its end."""
_CLOCK_TOLERANCE_SECONDS: Final = 0.05


class Churn:
    """Agents and readers, which run until the context ends.

    Attributes:
        calls: Calls that were answered.
        unavailable: Calls and streams that ended with UNAVAILABLE, or were reset, and were retried.
        errors: Calls with another code.
        abandoned: Earliest end of the lease of each agent that vanished, as seconds since 1970.
        lost: Leases that were unknown within their ttl after an acknowledged heartbeat.
        early: Leases that ended sooner than their ttl after the last acknowledged heartbeat.
        latest: Longest delay of the end of a lease, in seconds.
    """

    def __init__(self, target: str, agents: int, fleet: int, rng: random.Random) -> None:
        self._target, self._agents, self._fleet, self._rng = target, agents, fleet, rng
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._running = 0
        self.calls = self.unavailable = self.registered = self.renewed = self.expired = self.lost = self.early = 0
        self.latest = 0.0
        self.errors: Counter[str] = Counter()
        self.abandoned: dict[str, float] = {}

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self._target, options=[("grpc.lb_policy_name", "round_robin")])
        stub: RegistryServiceAsyncStub = RegistryServiceStub(self._channel)
        watching = asyncio.Event()
        self._tasks = [asyncio.create_task(self._watch(stub, watching))]
        await watching.wait()
        self._running = self._agents
        self._tasks += [asyncio.create_task(self._agent(stub, number)) for number in range(self._agents)]
        self._tasks += [asyncio.create_task(self._read(stub)) for _ in range(_READERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._tasks)
        await self._channel.close()

    async def settle(self, timeout_seconds: float) -> None:
        """Let no more agents come, and wait until all are gone and the leases of those that vanished have ended."""
        self._stopping.set()
        deadline = time.monotonic() + timeout_seconds
        while (self._running or self.abandoned) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def _agent(self, stub: "RegistryServiceAsyncStub", number: int) -> None:
        generation = 0
        while not self._stopping.is_set():
            generation += 1
            name = f"churn-{number}-{generation}"
            service = small_service(name, ttl={"seconds": TTL_SECONDS})
            service.health_check.heartbeat.SetInParent()
            renewed_at, answer = await self._call(stub.RegisterService, pb.RegisterServiceRequest(service=service))
            if answer is None:
                continue
            self.registered += 1
            beat = pb.HeartbeatRequest(names=[name])
            alive = True
            for _ in range(self._rng.randrange(_MAX_HEARTBEATS)):
                await asyncio.sleep(_HEARTBEAT_SECONDS * self._rng.uniform(0.5, 1.0))
                began, answer = await self._call(stub.Heartbeat, beat)
                if answer is None or answer.unknown_names:
                    self.lost += answer is not None and time.time() - renewed_at < TTL_SECONDS
                    alive = False
                    break
                renewed_at = began
                self.renewed += 1
            if alive and self._rng.random() < 0.5:
                self.abandoned[name] = renewed_at + TTL_SECONDS
            elif alive:
                await self._call(stub.UnregisterService, pb.UnregisterServiceRequest(name=name), may_be_gone=True)
        self._running -= 1

    async def _read(self, stub: "RegistryServiceAsyncStub") -> None:
        while True:
            name = name_of(self._rng.randrange(self._fleet))
            await self._call(stub.GetService, pb.GetServiceRequest(name=name))
            listing = pb.DiscoverServicesRequest(page_size=50)
            listing.filter.capability = f"capability-{self._rng.randrange(max(1, self._fleet // 100))}"
            await self._call(stub.DiscoverServices, listing)
            await asyncio.sleep(0.1)

    async def _watch(self, stub: "RegistryServiceAsyncStub", watching: asyncio.Event) -> None:
        """Compare the end of each lease with its time."""
        request = pb.WatchEventsRequest(types=[EventType.EVENT_TYPE_SERVICE_UNREGISTERED])
        request.filter.name_pattern = "^churn-"
        while True:
            try:
                async for message in stub.WatchEvents(request):
                    request.cursor = message.cursor
                    watching.set()
                    for event in message.events:
                        due = self.abandoned.pop(event.service.name, None)
                        if due is not None and event.reason == EventReason.EVENT_REASON_LEASE_EXPIRED:
                            delay = event.occurred_at.seconds + event.occurred_at.nanos / 1e9 - due
                            self.expired += 1
                            self.early += delay < -_CLOCK_TOLERANCE_SECONDS
                            self.latest = max(self.latest, delay)
            except grpc.aio.AioRpcError as error:
                self._count(error)
            await asyncio.sleep(0.1)

    async def _call(self, rpc: Any, request: Any, *, may_be_gone: bool = False) -> tuple[float, Any]:
        """Make a call until it is answered.

        Returns:
            The start of the answered attempt, as seconds since 1970, and the answer; ``None`` after an error.
        """
        while True:
            began = time.time()
            try:
                answer = await rpc(request, timeout=_DEADLINE_SECONDS)
            except grpc.aio.AioRpcError as error:
                if not (may_be_gone and error.code() == grpc.StatusCode.NOT_FOUND):
                    self._count(error)
                    if error.code() in _RETRIED:
                        await asyncio.sleep(0.2)
                        continue
                answer = None
            self.calls += 1
            return began, answer

    def _count(self, error: grpc.aio.AioRpcError) -> None:
        if error.code() in _RETRIED:
            self.unavailable += 1
        else:
            self.errors[error.code().name] += 1
