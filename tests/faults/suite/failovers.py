"""Faults of a Redis that fails over: under Sentinels, and in a cluster."""

import asyncio
import random
from collections.abc import AsyncIterator

from redis.exceptions import ResponseError

from tests.faults.suite.fault import fault
from tests.faults.suite.load import Load
from tests.faults.suite.stage import PATIENCE, Stage
from tests.support.deployments import SERVICE, cut_off, linked, role_of
from tests.support.redis_process import RedisProcess

_CONFIRMED = ("--redis.wait-replicas=1", "--redis.timeout-ms=1000")


@fault(
    "primary-killed",
    "`kill -9` of the primary under Sentinels, with `wait-replicas` 1; it comes back as a replica",
    deployment="sentinel",
    flags=_CONFIRMED,
)
async def primary_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    primary.kill()
    yield
    await _replaced(stage, primary)
    await primary.restart()
    await _follows(primary)


@fault(
    "primary-paused",
    "`SIGSTOP` of the primary under Sentinels, with `wait-replicas` 1; it wakes up after the failover",
    deployment="sentinel",
    flags=_CONFIRMED,
)
async def primary_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    primary.pause()
    try:
        yield
        await _replaced(stage, primary)
    finally:
        primary.resume()
    await _follows(primary)


@fault(
    "replica-killed",
    "`kill -9` of one of two replicas, with `wait-replicas` 1",
    deployment="sentinel",
    flags=_CONFIRMED,
)
async def replica_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replica = next(server for server in stage.servers if server is not primary)
    replica.kill()
    yield
    await replica.restart()
    await linked(replica)


@fault(
    "replica-paused",
    "`SIGSTOP` of one of two replicas, with `wait-replicas` 1",
    deployment="sentinel",
    flags=_CONFIRMED,
)
async def replica_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replica = next(server for server in stage.servers if server is not primary)
    replica.pause()
    try:
        yield
    finally:
        replica.resume()
    await linked(replica)


@fault(
    "failover-planned",
    "`SENTINEL FAILOVER`, with `wait-replicas` 2 of 2",
    deployment="sentinel",
    flags=("--redis.wait-replicas=2",),
)
async def failover_planned(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    assert stage.sentinel is not None
    primary = await stage.primary()
    async with asyncio.timeout(PATIENCE), stage.sentinel.client(stage.sentinel.sentinels[0]) as client:
        while True:
            try:
                await client.execute_command("SENTINEL FAILOVER", SERVICE)  # type: ignore[no-untyped-call]
                break
            except ResponseError:  # it has not heard of a replica for a moment
                await asyncio.sleep(0.2)
    yield
    await _replaced(stage, primary)
    for server in stage.servers:
        if await role_of(server) == "slave":
            await linked(server)


@fault(
    "failover-lagging",
    "`kill -9` of the primary under Sentinels when its replicas lack the newest writes, with `wait-replicas` 0",
    deployment="sentinel",
)
async def failover_lagging(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replicas = [server for server in stage.servers if server is not primary]
    async with cut_off(primary, replicas):
        await asyncio.sleep(chance.uniform(0.1, 0.8))
        primary.kill()
    yield
    await _replaced(stage, primary)
    await primary.restart()
    await _follows(primary)


async def _replaced(stage: Stage, primary: RedisProcess) -> None:
    assert stage.sentinel is not None
    await stage.sentinel.primary(other_than=primary)


async def _follows(server: RedisProcess) -> None:
    async with asyncio.timeout(PATIENCE):
        while await role_of(server) != "slave":
            await asyncio.sleep(0.05)
    await linked(server)


# A cluster.


async def _replica_takes_over(stage: Stage) -> None:
    async with asyncio.timeout(PATIENCE):
        while await role_of(stage.servers[-1]) != "master":
            await asyncio.sleep(0.05)


@fault(
    "slot-owner-killed",
    "`kill -9` of the node of a cluster that owns the slot, with `wait-replicas` 1; it comes back as a replica",
    deployment="cluster",
    flags=_CONFIRMED,
)
async def slot_owner_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].kill()
    yield
    await _replica_takes_over(stage)
    await stage.servers[0].restart()
    await _follows(stage.servers[0])


@fault(
    "slot-owner-paused",
    "`SIGSTOP` of that node; it wakes up after the failover",
    deployment="cluster",
    flags=_CONFIRMED,
)
async def slot_owner_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].pause()
    try:
        yield
        await _replica_takes_over(stage)
    finally:
        stage.servers[0].resume()
    await _follows(stage.servers[0])
