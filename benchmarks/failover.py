"""Failovers of Redis under Sentinel: time without acknowledged writes, failed reads and lost writes."""

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
from registry_server.runtime.tasks import cancel
from tests.support.deployments import SENTINEL_DOWN_AFTER_MS, cut_off, role_of, wait_until_linked, watched
from tests.support.samples import small_service

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub  # only in the type stubs

_FAILOVERS: Final = 10
_PAUSE_SECONDS: Final = 1.0
_WRITERS: Final = 4
_LAG_SECONDS: Final = 0.5
"""How long replication is cut before the primary is killed."""


class _Traffic:
    """Writers and a reader that run until cancelled, and their counters."""

    def __init__(self, stub: "RegistryServiceAsyncStub") -> None:
        self._stub = stub
        self._last = time.monotonic()
        self.gap = 0.0
        """Longest time without an acknowledged write, in seconds."""
        self.acknowledged: set[str] = set()
        self.reads = self.failed_reads = self.failed_writes = 0

    async def write(self, number: int) -> None:
        count = 0
        while True:
            count += 1
            name = f"w{number}-{count}"
            try:
                await self._stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name)), timeout=10)
            except grpc.aio.AioRpcError:
                self.failed_writes += 1
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
    """Kill the primary repeatedly. Each former primary rejoins as a replica before the next kill."""
    await _failovers(report, "replicas caught up", lag=0)
    await _failovers(
        report, f"replicas lack the newest {_LAG_SECONDS:g} s, which the registry restores", lag=_LAG_SECONDS
    )


async def _failovers(report: Report, title: str, *, lag: float) -> None:
    after = f"down after {SENTINEL_DOWN_AFTER_MS / 1000:g} s"
    report.title(f"{_FAILOVERS} kills of a primary under Sentinel, {after}; {title}")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as name:
        folder = Path(name)
        async with (
            watched(folder) as redis,
            registry(folder, f"--redis.url={redis.url}", "--log.requests=off", "--log.audit=off") as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stub, gaps, lagged = RegistryServiceStub(channel), [], 0
            async with _run_traffic(stub) as traffic:
                for _i in range(_FAILOVERS):
                    primary = await redis.primary()
                    if lag:
                        before = len(traffic.acknowledged)
                        async with cut_off(primary, [server for server in redis.servers if server is not primary]):
                            await asyncio.sleep(lag)
                            lagged += len(traffic.acknowledged) - before
                            primary.kill()
                    else:
                        primary.kill()
                    traffic.gap, before = 0.0, len(traffic.acknowledged)
                    await redis.primary(other_than=primary)
                    while len(traffic.acknowledged) < before + 50:  # noqa: ASYNC110 - polling is precise enough
                        await asyncio.sleep(0.02)
                    gaps.append(traffic.gap)
                    await primary.restart()
                    while await role_of(primary) != "slave":  # noqa: ASYNC110 - as above
                        await asyncio.sleep(0.05)
                    await wait_until_linked(primary)
                    await asyncio.sleep(_PAUSE_SECONDS)
            missing = await _missing(stub, traffic.acknowledged)
    report.line("time without an acknowledged write, each", " ".join(f"{gap:.1f}" for gap in gaps) + " s")
    report.line("time without an acknowledged write, median", f"{statistics.median(gaps):.1f} s")
    report.line("writes acknowledged, failed", f"{len(traffic.acknowledged):,} {traffic.failed_writes:,}")
    if lag:
        report.line("writes acknowledged while replication was cut", f"{lagged:,}")
    report.line("reads", f"{traffic.reads:,}")
    report.at_most("failed reads", traffic.failed_reads, 0, "")
    report.at_most("missing acknowledged writes", missing, 0, "")


@asynccontextmanager
async def _run_traffic(stub: "RegistryServiceAsyncStub") -> AsyncIterator[_Traffic]:
    traffic = _Traffic(stub)
    tasks = [asyncio.create_task(each) for each in (*(traffic.write(i) for i in range(_WRITERS)), traffic.read())]
    try:
        yield traffic
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
