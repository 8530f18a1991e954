"""Concurrent writers, readers and an agent that sends heartbeats, all of which check the responses."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.runtime.tasks import cancel
from tests.support.samples import small_service
from tests.support.server import Server

if TYPE_CHECKING:
    from ossa.registry.v1.service_pb2 import Service

BEATING = "beats"
TTL_SECONDS = 5
PAUSE_SECONDS = 0.02
STOP_TIMEOUT_SECONDS = 30  # seconds


class Traffic:
    """Load on a server, and its results.

    A failed read fails the test, and so does a write that fails with an error other than UNAVAILABLE.
    """

    def __init__(self, server: Server) -> None:
        self._stub = server.stub
        self.acknowledged: dict[str, Service] = {}
        self.refused: list[str] = []
        """Reasons of the failed writes."""
        self.stopping = False
        """Whether the tasks stop after their current call."""
        self._reads = 0
        self._longest_gap = self._last_write = 0.0

    def report(self, title: str) -> None:
        """Print the results."""
        refused = {reason: self.refused.count(reason) for reason in sorted(set(self.refused))}
        print(
            f"{title}: {self._longest_gap:.1f} s without an acknowledged write; {self._reads} reads, none failed; "
            f"{len(self.acknowledged)} writes, refused {refused}"
        )

    async def begin(self) -> None:
        """Register the agent that sends heartbeats."""
        service = small_service(BEATING)
        service.ttl.seconds = TTL_SECONDS
        await self._stub.RegisterService(pb.RegisterServiceRequest(service=service))
        self._last_write = time.monotonic()

    async def write(self, number: int) -> None:
        """Register one service after another."""
        count = 0
        while not self.stopping:
            count += 1
            service = small_service(f"load-{number}-{count}")
            try:
                answer = await self._stub.RegisterService(pb.RegisterServiceRequest(service=service))
            except grpc.aio.AioRpcError as error:
                self.refused.append(reason_of(error))
            else:
                self.acknowledged[service.name] = answer.service
                now = time.monotonic()
                self._longest_gap = max(self._longest_gap, now - self._last_write)
                self._last_write = now
            await asyncio.sleep(PAUSE_SECONDS)

    async def read(self) -> None:
        """Read continuously, and check that acknowledged services are found."""
        while not self.stopping:
            await self._stub.GetService(pb.GetServiceRequest(name=BEATING))
            before = len(self.acknowledged)  # writes can be acknowledged after the response was computed
            found = await self._stub.DiscoverServices(pb.DiscoverServicesRequest(page_size=1))
            assert found.total_size > before
            self._reads += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def beat(self) -> None:
        """Renew a short lease, ignoring UNAVAILABLE."""
        while not self.stopping:
            try:
                answer = await self._stub.Heartbeat(pb.HeartbeatRequest(names=[BEATING]))
                assert answer.renewed_count == 1
            except grpc.aio.AioRpcError as error:
                reason_of(error)
            await asyncio.sleep(0.5)


def info_of(error: grpc.aio.AioRpcError) -> ErrorInfo:
    """Return the ``ErrorInfo`` of an error."""
    trailers = dict(error.trailing_metadata() or ())
    info = ErrorInfo()
    assert Status.FromString(bytes(trailers["grpc-status-details-bin"])).details[0].Unpack(info)
    return info


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the reason of an UNAVAILABLE error. Any other error fails the test."""
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    reason: str = info_of(error).reason
    return reason


@asynccontextmanager
async def traffic(server: Server, writers: int = 4) -> AsyncIterator[Traffic]:
    """Run the load within the block and raise its first error.

    Calls in flight are awaited at the end, because a cancelled call could still change something later.
    """
    subject = Traffic(server)
    await subject.begin()
    running = [subject.write(number) for number in range(writers)]
    tasks = [asyncio.create_task(each) for each in (*running, subject.read(), subject.beat())]
    try:
        yield subject
        subject.stopping = True
        async with asyncio.timeout(STOP_TIMEOUT_SECONDS):
            await asyncio.gather(*tasks)
    finally:
        await cancel(tasks)


async def more_writes(subject: Traffic, number: int = 20, timeout_seconds: float = 60.0) -> None:
    """Wait until ``number`` more writes are acknowledged."""
    goal = len(subject.acknowledged) + number
    async with asyncio.timeout(timeout_seconds):
        while len(subject.acknowledged) < goal:
            await asyncio.sleep(0.01)
