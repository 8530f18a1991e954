"""Writes of this process: one limit on those in flight, and the owners that other processes learn."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import Overloaded, StoreUnavailable
from registry_server.model.record import Record
from registry_server.replication import Writes
from registry_server.replication import writes as writes_module
from registry_server.runtime.clock import timestamp
from registry_server.security.identity import Claim
from registry_server.store import StoreLimits
from tests.support.followers import REGISTERED, Backup, FollowerProcess, Writer, eventually
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service

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


@pytest.mark.own_redis
async def test_revision_reused_for_the_same_service_is_no_confirmation(
    process: FollowerProcess, client: Redis, backup: Backup
) -> None:
    await process.pause()
    backup.copy_files()
    write = asyncio.create_task(
        writes_of(process).write_service(None, small_service("a", version="1.0.0"), REGISTERED, renew=True)
    )
    while await client.get(process.store.keys.revision) != b"1":
        await asyncio.sleep(0.005)
    async with backup.restored() as other:
        await other.write_services("a", version="2.0.0")
        assert other.revisions == {"a": 1}
    process.start()
    with pytest.raises(StoreUnavailable):
        await write


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
