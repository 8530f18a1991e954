"""Failovers of Redis under Sentinel: how long no write is acknowledged, whether reads fail, what is lost."""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from benchmarks.processes import registry
from benchmarks.report import Report
from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_server.tasks import cancel
from tests.support.deployments import SENTINEL_DOWN_AFTER, cut_off, linked, role_of, watched
from tests.support.samples import small_service

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub  # only in the type stubs

_FAILOVERS: Final = 10
_BETWEEN: Final = 1.0
_WRITERS: Final = 4
_LAG: Final = 0.5
"""Seconds of writes that no replica has when its primary dies."""


class _Traffic:
    """Writers and a reader, who never stop."""

    def __init__(self, stub: "RegistryServiceAsyncStub") -> None:
        self._stub = stub
        self._last = time.monotonic()
        self.gap = 0.0
        """Longest time without an acknowledged write, in seconds."""
        self.acknowledged: set[str] = set()
        self.reads = self.failed_reads = self.refused = 0

    async def write(self, number: int) -> None:
        count = 0
        while True:
            count += 1
            name = f"w{number}-{count}"
            try:
                await self._stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name)), timeout=10)
            except grpc.aio.AioRpcError:
                self.refused += 1
                await asyncio.sleep(0.02)
                continue
            self.acknowledged.add(name)
            now = time.monotonic()
            self.gap, self._last = max(self.gap, now - self._last), now
            await asyncio.sleep(0.02)

    async def read(self) -> None:
        while True:
            try:
                await self._stub.DiscoverServices(pb.DiscoverServicesRequest(page_size=10), timeout=10)
            except grpc.aio.AioRpcError:
                self.failed_reads += 1
            self.reads += 1
            await asyncio.sleep(0.01)


async def run(report: Report, _: argparse.Namespace) -> None:
    """Kills the primary again and again; each comes back as a replica before the next one is killed."""
    await _failovers(report, "its replicas are level", lag=0)
    await _failovers(report, f"its replicas lack the newest {_LAG:g} s, which the registry puts back", lag=_LAG)


async def _failovers(report: Report, title: str, *, lag: float) -> None:
    after = f"down after {SENTINEL_DOWN_AFTER / 1000:g} s"
    report.title(f"{_FAILOVERS} kills of a primary under Sentinel, {after}; {title}")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as name:
        folder = Path(name)
        async with (
            watched(folder) as redis,
            registry(folder, f"--redis.url={redis.url}", "--log.requests=off", "--log.audit=off") as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub, gaps, lagged = RegistryServiceStub(channel), [], 0
            async with _traffic(stub) as seen:
                for _i in range(_FAILOVERS):
                    killed = await redis.primary()
                    if lag:
                        before = len(seen.acknowledged)
                        async with cut_off(killed, [server for server in redis.servers if server is not killed]):
                            await asyncio.sleep(lag)
                            lagged += len(seen.acknowledged) - before
                            killed.kill()
                    else:
                        killed.kill()
                    seen.gap, before = 0.0, len(seen.acknowledged)
                    await redis.primary(other_than=killed)
                    while len(seen.acknowledged) < before + 50:  # noqa: ASYNC110 - a look now and then is enough
                        await asyncio.sleep(0.02)
                    gaps.append(seen.gap)
                    await killed.restart()
                    while await role_of(killed) != "slave":  # noqa: ASYNC110 - as above
                        await asyncio.sleep(0.05)
                    await linked(killed)
                    await asyncio.sleep(_BETWEEN)
            missing = await _missing(stub, seen.acknowledged)
    report.line("without an acknowledged write, each", " ".join(f"{gap:.1f}" for gap in gaps) + " s")
    report.line("median", f"{statistics.median(gaps):.1f} s")
    report.line("writes acknowledged, refused", f"{len(seen.acknowledged):,} {seen.refused:,}")
    if lag:
        report.line("of them acknowledged when no replica got them any more", f"{lagged:,}")
    report.line("reads", f"{seen.reads:,}")
    report.at_most("reads that failed", seen.failed_reads, 0, "")
    report.at_most("acknowledged writes that are missing", missing, 0, "")


@asynccontextmanager
async def _traffic(stub: "RegistryServiceAsyncStub") -> AsyncIterator[_Traffic]:
    seen = _Traffic(stub)
    tasks = [asyncio.create_task(each) for each in (*(seen.write(i) for i in range(_WRITERS)), seen.read())]
    try:
        yield seen
    finally:
        await cancel(tasks)


async def _missing(stub: "RegistryServiceAsyncStub", names: set[str]) -> int:
    found: set[str] = set()
    request = pb.DiscoverServicesRequest(page_size=1000, consistency=pb.Consistency.CONSISTENCY_STRONG)
    while True:
        answer = await stub.DiscoverServices(request)
        found.update(service.name for service in answer.services)
        if not answer.next_page_token:
            return len(names - found)
        request.page_token = answer.next_page_token
