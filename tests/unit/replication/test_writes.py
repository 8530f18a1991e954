"""Writes of this process: one limit on those in flight, and the owners that other processes learn."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import Overloaded
from registry_server.model.record import Record
from registry_server.replication import Writes
from registry_server.replication import writes as writes_module
from registry_server.runtime.clock import timestamp
from registry_server.security.identity import Claim
from registry_server.store import StoreLimits
from tests.support.followers import FollowerProcess, Writer, eventually
from tests.support.redis_process import RedisProcess

ALICE = Claim("alice", exclusive=True)


@pytest.fixture
async def process(redis: RedisProcess, limits: StoreLimits) -> AsyncIterator[FollowerProcess]:
    async with FollowerProcess(redis.url, repair=True, limits=limits).running() as running:
        await running.catch_up()
        yield running


def writes_of(process: FollowerProcess, *, max_in_flight: int = 100) -> Writes:
    return Writes(process.store, process.replica, process.follower, default_ttl=60, max_in_flight=max_in_flight)


async def register_unchanged(process: FollowerProcess, name: str, claim: Claim) -> Service:
    """Register a service again with the content that the process knows."""
    before = process.replica.records[name].message()
    after = Service()
    after.CopyFrom(before)
    outcome = await writes_of(process).put_service(before, after, timestamp(time.time_ns()), renew=True, claim=claim)
    assert isinstance(outcome, Service)
    return outcome


async def test_writes_above_the_limit_are_refused(process: FollowerProcess) -> None:
    writes, release = writes_of(process, max_in_flight=10), asyncio.Event()

    async def attempt(_: Record | None) -> str:
        await release.wait()
        return "written"

    tasks = [asyncio.create_task(writes.change_service("a", attempt)) for _ in range(8)]
    await eventually(lambda: writes.in_flight == 8)
    with pytest.raises(Overloaded) as refused:
        await writes.change_service("b", attempt)
    assert refused.value.metadata == {"limit": "writes", "most": "10"}
    with pytest.raises(Overloaded):
        writes.require_capacity()
    release.set()
    assert await asyncio.gather(*tasks) == ["written"] * 8
    writes.require_capacity(8)
    assert await writes.change_service("b", attempt) == "written"
    assert writes.in_flight == 0


async def test_caller_with_many_writes_leaves_places_to_others(
    process: FollowerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, release = writes_of(process, max_in_flight=10), asyncio.Event()

    async def attempt(_: Record | None) -> str:
        await release.wait()
        return "written"

    def write(name: str) -> "asyncio.Task[str]":
        return asyncio.create_task(writes.change_service(name, attempt))

    accepted = [write("a") for _ in range(8)]
    await eventually(lambda: writes.in_flight == 8)
    monkeypatch.setattr(writes_module, "current_caller_key", lambda: ("api-key", "another"))
    accepted.append(write("b"))
    await eventually(lambda: writes.in_flight == 9)
    monkeypatch.undo()
    with pytest.raises(Overloaded):
        await write("a")
    with pytest.raises(Overloaded):
        writes.require_capacity(2)
    release.set()
    assert set(await asyncio.gather(*accepted)) == {"written"}
    assert writes.in_flight == 0


async def test_every_process_learns_the_owner_of_an_unchanged_service(
    redis: RedisProcess, process: FollowerProcess, writer: Writer
) -> None:
    await writer.write_services("a")
    async with FollowerProcess(redis.url).running() as other:
        for each in (process, other):
            await each.catch_up()
        assert (await register_unchanged(process, "a", Claim("operator"))).revision == 1
        assert process.replica.owners == {}, "only an exclusive claim takes over a service without an owner"
        assert (await register_unchanged(process, "a", ALICE)).revision == 2
        await other.catch_up()
        assert process.replica.owners == other.replica.owners == {"a": "alice"}
        assert (await register_unchanged(other, "a", ALICE)).revision == 2, "the owner changes nothing"
    assert await writer.store.reader.read_owners() == {"a": "alice"}


async def test_any_process_restores_the_owner_of_an_unchanged_service(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a")
    async with FollowerProcess(redis.url, repair=True).running() as other:
        for each in (process, other):
            await each.catch_up()
        await register_unchanged(process, "a", ALICE)
        await other.catch_up()
        await process.pause()
        await client.flushall()
        await eventually(lambda: other.follower.repairer is not None and bool(other.follower.repairer.counters.repairs))
        assert await writer.store.reader.read_owner("a") == "alice"
