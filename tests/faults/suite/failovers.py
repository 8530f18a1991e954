"""Faults of Redis with failover: under Sentinel, and in a cluster."""

import asyncio
import random
from collections.abc import AsyncIterator

from redis.exceptions import ResponseError

from tests.faults.suite.fault import fault
from tests.faults.suite.load import Load
from tests.faults.suite.stage import RECOVERY_TIMEOUT_SECONDS, Stage
from tests.support.deployments import SERVICE, cut_off, role_of, wait_until_linked
from tests.support.redis_process import RedisProcess

_WAIT_FOR_REPLICA = ("--redis.wait-replicas=1", "--redis.timeout-ms=1000")


@fault(
    "primary-killed",
    "`kill -9` of the primary under Sentinel, with `wait-replicas` 1; it rejoins as a replica",
    deployment="sentinel",
    flags=_WAIT_FOR_REPLICA,
)
async def primary_killed(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    primary.kill()
    yield
    await _wait_for_failover(stage, primary)
    await primary.restart()
    await _wait_for_replica(primary)


@fault(
    "primary-paused",
    "`SIGSTOP` of the primary under Sentinel, with `wait-replicas` 1; it resumes after the failover",
    deployment="sentinel",
    flags=_WAIT_FOR_REPLICA,
)
async def primary_paused(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    primary.pause()
    try:
        yield
        await _wait_for_failover(stage, primary)
    finally:
        primary.resume()
    await _wait_for_replica(primary)


@fault(
    "replica-killed",
    "`kill -9` of one of two replicas, with `wait-replicas` 1",
    deployment="sentinel",
    flags=_WAIT_FOR_REPLICA,
)
async def replica_killed(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replica = next(server for server in stage.servers if server is not primary)
    replica.kill()
    yield
    await replica.restart()
    await wait_until_linked(replica)


@fault(
    "replica-paused",
    "`SIGSTOP` of one of two replicas, with `wait-replicas` 1",
    deployment="sentinel",
    flags=_WAIT_FOR_REPLICA,
)
async def replica_paused(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replica = next(server for server in stage.servers if server is not primary)
    replica.pause()
    try:
        yield
    finally:
        replica.resume()
    await wait_until_linked(replica)


@fault(
    "failover-planned",
    "`SENTINEL FAILOVER`, with `wait-replicas` 2 of 2",
    deployment="sentinel",
    flags=("--redis.wait-replicas=2",),
)
async def failover_planned(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    assert stage.sentinel is not None
    primary = await stage.primary()
    async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS), stage.sentinel.client(stage.sentinel.sentinels[0]) as client:
        while True:
            try:
                await client.execute_command("SENTINEL FAILOVER", SERVICE)  # type: ignore[no-untyped-call]
                break
            except ResponseError:  # Sentinel has no usable replica for a moment
                await asyncio.sleep(0.2)
    yield
    await _wait_for_failover(stage, primary)
    for server in stage.servers:
        if await role_of(server) == "slave":
            await wait_until_linked(server)


@fault(
    "failover-lagging",
    "`kill -9` of the primary under Sentinel while its replicas lack the newest writes, with `wait-replicas` 0",
    deployment="sentinel",
)
async def failover_lagging(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replicas = [server for server in stage.servers if server is not primary]
    async with cut_off(primary, replicas):
        await asyncio.sleep(rng.uniform(0.1, 0.8))
        primary.kill()
    yield
    await _wait_for_failover(stage, primary)
    await primary.restart()
    await _wait_for_replica(primary)


async def _wait_for_failover(stage: Stage, primary: RedisProcess) -> None:
    assert stage.sentinel is not None
    await stage.sentinel.primary(other_than=primary)


async def _wait_for_replica(server: RedisProcess) -> None:
    async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS):
        while await role_of(server) != "slave":
            await asyncio.sleep(0.05)
    await wait_until_linked(server)


# A cluster.


async def _wait_for_promotion(stage: Stage) -> None:
    async with asyncio.timeout(RECOVERY_TIMEOUT_SECONDS):
        while await role_of(stage.servers[-1]) != "master":
            await asyncio.sleep(0.05)


@fault(
    "slot-owner-killed",
    "`kill -9` of the cluster node that owns the slot, with `wait-replicas` 1; it rejoins as a replica",
    deployment="cluster",
    flags=_WAIT_FOR_REPLICA,
)
async def slot_owner_killed(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    stage.servers[0].kill()
    yield
    await _wait_for_promotion(stage)
    await stage.servers[0].restart()
    await _wait_for_replica(stage.servers[0])


@fault(
    "slot-owner-paused",
    "`SIGSTOP` of the cluster node that owns the slot; it resumes after the failover",
    deployment="cluster",
    flags=_WAIT_FOR_REPLICA,
)
async def slot_owner_paused(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    stage.servers[0].pause()
    try:
        yield
        await _wait_for_promotion(stage)
    finally:
        stage.servers[0].resume()
    await _wait_for_replica(stage.servers[0])
