"""Each alert fires in a real Prometheus when its condition is caused; none fires while everything works."""

import asyncio
import os
import resource
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import HealthCheck, HealthStatus, ServiceFilter
from tests.support.agents import Agents, Behaviour
from tests.support.prometheus import ALERTS, Prometheus, alert_names, needs_prometheus
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import ServerProcess, connected, running

pytestmark = [needs_prometheus, pytest.mark.timeout(240)]

TESTED: set[str] = set()
"""Alerts that the tests of this file cause; compared with the rules."""


def causes(*alerts: str) -> pytest.MarkDecorator:
    """Declare the alerts that a test causes, and pass them to it as ``alerts``."""
    TESTED.update(alerts)
    return pytest.mark.parametrize("alerts", [alerts], ids=["+".join(alerts)])


@asynccontextmanager
async def monitored(folder: Path, redis: RedisProcess, *flags: str, processes: int = 1) -> AsyncIterator[Any]:
    """Run registry processes, a Prometheus that scrapes them and a writer; yield Prometheus, processes and a stub."""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(ServerProcess(f"--redis.url={redis.url}", *flags)) for _ in range(processes)
        ]
        _, stub = await stack.enter_async_context(connected(servers[0].grpc_address))
        prometheus = await stack.enter_async_context(Prometheus(folder / "prom", [s.http_address for s in servers]))
        writer = asyncio.create_task(write_until_cancelled(stub))
        try:
            await prometheus.scraped(3)
            yield prometheus, servers, stub
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)


async def write_until_cancelled(stub: Any) -> None:
    for i in range(1_000_000):
        with suppress(grpc.aio.AioRpcError):
            request = pb.RegisterServiceRequest(service=small_service("busy", version=f"1.0.{i}"))
            await stub.RegisterService(request, timeout=5)
        await asyncio.sleep(0.05)


def test_every_alert_is_tested() -> None:
    assert set(alert_names(ALERTS.read_text(encoding="utf-8"))) == TESTED


async def test_no_alert_fires_during_normal_operation(tmp_path: Path, redis: RedisProcess) -> None:
    async with monitored(tmp_path, redis, processes=2) as (prometheus, _, stub):
        seen: set[str] = set()
        for _ in range(20):
            await stub.DiscoverServices(pb.DiscoverServicesRequest())
            seen |= await prometheus.firing()
            await asyncio.sleep(0.2)
        (commits,) = await prometheus.query('sum(rate(ossa_registry_commits_total{outcome="committed"}[12s])) > 0')
    # These alerts are justified on a machine that is busy with other work.
    assert seen <= {
        "OssaRegistryEventLoopLag",
        "OssaRegistryEventLoopStalls",
        "OssaRegistrySlow",
        "OssaRegistryCommitsSlow",
        "OssaRegistryReplicationLag",
    }
    assert commits[1] > 0


@causes("OssaRegistryDown")
async def test_killed_registry(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with monitored(tmp_path, redis) as (prometheus, [server], _):
        await server.kill()
        await prometheus.fires(*alerts)


@causes("OssaRegistryProblem")
async def test_damaged_key(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with monitored(tmp_path, redis) as (prometheus, _, _), Redis.from_url(redis.url) as client:
        await client.delete("ossa:registry:leases")
        await client.set("ossa:registry:leases", "of another program")
        await prometheus.fires(*alerts)


@pytest.mark.own_redis
@causes(
    *("OssaRegistryStoreUnavailable", "OssaRegistryCommitFailures", "OssaRegistryCommitsSlow"),
    *("OssaRegistryErrors", "OssaRegistrySlow"),
)
async def test_hanging_redis(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with monitored(tmp_path, redis) as (prometheus, _, _), asyncio.TaskGroup() as group:
        firing = group.create_task(prometheus.fires(*alerts))
        while not firing.done():  # alternate, so that some calls complete and are counted as slow
            redis.pause()
            await asyncio.wait([firing], timeout=4)
            redis.resume()
            await asyncio.wait([firing], timeout=1)


@causes("OssaRegistryEpochChanged", "OssaRegistryResyncs")
async def test_emptied_redis(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with (
        monitored(tmp_path, redis, "--redis.repair=false") as (prometheus, _, _),
        Redis.from_url(redis.url) as client,
        asyncio.TaskGroup() as group,
    ):
        firing = group.create_task(prometheus.fires(*alerts))
        while not firing.done():
            await client.flushall()
            await asyncio.wait([firing], timeout=1)


@causes("OssaRegistryEventLoopLag", "OssaRegistryEventLoopStalls", "OssaRegistryReplicationLag")
async def test_paused_registry(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with monitored(tmp_path, redis, processes=2) as (prometheus, [_, other], _), asyncio.TaskGroup() as group:
        firing = group.create_task(prometheus.fires(*alerts))
        while not firing.done():
            other.signal(signal.SIGSTOP)
            await asyncio.wait([firing], timeout=2.5)
            other.signal(signal.SIGCONT)
            await asyncio.wait([firing], timeout=1)


@causes("OssaRegistryWatchersDropped")
async def test_watcher_that_does_not_read(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with (
        monitored(tmp_path, redis, "--watch.buffer-events=3") as (prometheus, [server], _),
        grpc.aio.insecure_channel(
            server.grpc_address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.http2.lookahead_bytes", 1)]
        ) as channel,
        asyncio.TaskGroup() as group,
    ):
        stub: Any = RegistryServiceStub(channel)
        watch = stub.WatchEvents(pb.WatchEventsRequest())  # never read
        firing = group.create_task(prometheus.fires(*alerts))
        number = 0
        while not firing.done():
            large = [small_service(f"l{i}", version=f"1.{number}.{i}", metadata=large_metadata()) for i in range(50)]
            await stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=large))
            number += 1
            await asyncio.wait([firing], timeout=0.05)
        watch.cancel()


def large_metadata() -> Any:
    return {"tags": [f"{i:02d}{'x' * 60}" for i in range(20)]}


@causes("OssaRegistryLeasesExpire")
async def test_fleet_without_heartbeats(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with monitored(tmp_path, redis, "--lease.sweep-interval-ms=100") as (prometheus, _, stub):
        fleet = [small_service(f"a{i}", ttl=Duration(seconds=5)) for i in range(30)]
        await stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=fleet))
        await prometheus.fires(*alerts)


@causes("OssaRegistrySelfPreservation")
async def test_failure_of_all_probes(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    check = {"interval_ms": 300, "timeout_ms": 250, "self_preservation_min_failures": 5}
    async with (
        Agents() as agents,
        running(redis.url, health_check=check) as server,
        Prometheus(tmp_path / "prom", [server.http.removeprefix("http://")]) as prometheus,
    ):
        fleet = agents.services(20)
        await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=fleet))
        healthy = ServiceFilter(health=[HealthStatus.HEALTH_STATUS_HEALTHY])
        async with asyncio.timeout(60):
            while len(await server.parts.registry.discover(healthy)) < len(fleet):
                await asyncio.sleep(0.05)
        agents.set_behaviour(Behaviour.ERROR)
        await prometheus.fires(*alerts)


@causes("OssaRegistryProbesLate")
async def test_more_slow_probes_than_probe_slots(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with (
        Agents(delay=0.2) as agents,
        running(redis.url, health_check={"interval_ms": 500, "timeout_ms": 500, "concurrency": 1}) as server,
        Prometheus(tmp_path / "prom", [server.http.removeprefix("http://")]) as prometheus,
    ):
        fleet = agents.services(20, health_check=HealthCheck(interval=Duration(seconds=1)))
        await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=fleet))
        await prometheus.fires(*alerts)


@pytest.mark.own_redis
@causes("OssaRegistryRedisMemory", "OssaRegistryRedisPersistenceFailing")
async def test_redis_without_memory_and_disk(alerts: tuple[str, ...], tmp_path: Path) -> None:
    async with (
        RedisProcess(tmp_path / "redis") as redis,
        monitored(tmp_path, redis) as (prometheus, _, _),
        Redis.from_url(redis.url) as client,
    ):
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory", int(used * 1.02))
        shutil.rmtree(tmp_path / "redis")
        with suppress(ResponseError):
            await client.bgsave()
        await prometheus.fires(*alerts)


@causes("OssaRegistryOpenFiles")
async def test_registry_near_its_file_limit(alerts: tuple[str, ...], tmp_path: Path, redis: RedisProcess) -> None:
    async with monitored(tmp_path, redis) as (prometheus, [server], _):
        used = len(os.listdir(f"/proc/{server.pid}/fd"))  # noqa: PTH208 - procfs
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 6, used + 6))
        await prometheus.fires(*alerts)
