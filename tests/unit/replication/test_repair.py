"""A store that has lost what a process holds is given it back, by whoever knows most."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from ossa.registry.v1.event_pb2 import EventType
from registry_server.errors import PermissionDenied, StoreUnavailable
from registry_server.model.tokens import Cursor
from registry_server.security.identity import Claim
from registry_server.store import EpochChanged, Position, RestoredService, StoreLimits, TurnLost
from tests.support.followers import (
    CLIENT_REQUEST,
    REGISTERED,
    RESYNC,
    UPDATED,
    Backup,
    Observer,
    Process,
    Writer,
    eventually,
)
from tests.support.redis_process import RedisProcess


@pytest.fixture
async def process(redis: RedisProcess, limits: StoreLimits) -> AsyncIterator[Process]:
    async with Process(redis.url, repair=True, limits=limits).running() as running:
        yield running


def outcomes(*processes: Process) -> dict[str, int]:
    """What repairs came to, of all processes."""
    counted: dict[str, int] = {}
    for process in processes:
        assert process.follower.repairer is not None
        for outcome, count in process.follower.repairer.counters.repairs.items():
            counted[outcome] = counted.get(outcome, 0) + count
    return counted


async def repaired(*processes: Process, times: int = 1) -> None:
    """Waits until so many repairs are done that were needed, and all are level."""
    await eventually(lambda: sum(outcomes(*processes).values()) >= times)
    for process in processes:
        await process.catch_up()


async def test_an_emptied_store_goes_on_with_its_history(process: Process, writer: Writer, client: Redis) -> None:
    await writer.put("a", "gone", "c")
    await writer.put("a", version="2.0.0")
    await writer.delete("gone")
    await process.catch_up()
    before = process.replica.position
    events: Any = await client.xrange(writer.store.keys.events)
    observer = Observer()
    async with observer.watching(process.hub):
        await client.flushall()
        await repaired(process)
        await writer.refresh()
        await writer.put("next")
        await eventually(lambda: bool(observer.events))

    assert observer.received() == [(REGISTERED, "next", CLIENT_REQUEST)]
    assert process.replica.position == Position(before.epoch, before.revision + 1)
    now: Any = await client.xrange(writer.store.keys.events)
    assert now[:-1] == events
    assert process.connections == [True, False, True]
    assert (process.follower.resyncs, outcomes(process)) == (0, {"continued": 1})
    past = process.hub._changes_since(Cursor(before.epoch, 1))
    assert [change.revision for change in past] == [2, 3, 4, 5, 6]


@pytest.mark.own_redis
async def test_a_store_restored_from_older_data_goes_on_with_its_history(
    process: Process, writer: Writer, client: Redis, backup: Backup
) -> None:
    await writer.put("same", "changed", "gone")
    await process.catch_up()
    backup.take()
    await writer.put("changed", version="2.0.0")
    await writer.delete("gone")
    await writer.put("lost")
    await process.catch_up()
    before = process.replica.position
    observer = Observer()
    async with observer.watching(process.hub):
        async with backup.restored():
            pass
        await repaired(process)
        await writer.refresh()
        await writer.put("next")
        await eventually(lambda: bool(observer.events))

    assert observer.received() == [(REGISTERED, "next", CLIENT_REQUEST)]
    assert process.replica.records.keys() == {"same", "changed", "lost", "next"}
    assert process.replica.position == Position(before.epoch, before.revision + 1)
    entries: Any = await client.xrange(writer.store.keys.events)
    ids = [entry_id for entry_id, _ in entries]
    assert ids == [f"{revision}-0".encode() for revision in range(1, 8)]
    assert outcomes(process) == {"continued": 1}


@pytest.mark.own_redis
async def test_a_store_older_than_what_is_kept_of_the_past_goes_on_too(
    redis: RedisProcess, writer: Writer, backup: Backup
) -> None:
    async with Process(redis.url, history=3, repair=True).running() as process:
        await writer.put("same", "changed", "gone")
        await process.catch_up()
        backup.take()
        await writer.put("changed", version="2.0.0")
        await writer.delete("gone")
        await writer.put("x", "y", "z", "lost")
        await process.catch_up()
        before = process.replica.position
        observer = Observer()
        async with observer.watching(process.hub):
            async with backup.restored():
                pass
            await repaired(process)

        assert observer.events == []
        assert process.replica.position == before
        assert outcomes(process) == {"continued": 1}


@pytest.mark.own_redis
@pytest.mark.parametrize("others", [1, 3, 5], ids=["fewer", "as many", "more"])
async def test_where_others_wrote_meanwhile_both_are_kept_under_another_epoch(
    redis: RedisProcess, process: Process, writer: Writer, backup: Backup, others: int
) -> None:
    await writer.put("a", "gone")
    await process.catch_up()
    backup.take()
    await writer.put("lost")
    await writer.put("a", version="2.0.0")
    await writer.delete("gone")
    await process.catch_up()
    before = process.replica.position
    observer = Observer()
    names = {f"other{i}" for i in range(others)}
    async with observer.watching(process.hub):
        async with backup.restored() as other:
            await other.put(*sorted(names))
        await repaired(process)
        await eventually(lambda: observer.state.keys() == {"a", "lost", *names})

    assert sorted(observer.received()) == [(REGISTERED, name, RESYNC) for name in sorted(names)]
    assert outcomes(process) == {"merged": 1}
    assert process.replica.position == Position(process.replica.position.epoch, max(before.revision, 2 + others))
    assert process.replica.position.epoch != before.epoch
    assert process.replica.records["a"].version() == "2.0.0"
    async with Process(redis.url, repair=True).running() as fresh:
        await fresh.catch_up()
        assert fresh.replica.records.keys() == process.replica.records.keys()


@pytest.mark.own_redis
async def test_where_nothing_is_lacking_but_numbers_mean_other_changes_another_epoch_begins(
    process: Process, writer: Writer, backup: Backup
) -> None:
    await writer.put("a")
    await process.catch_up()
    backup.take()
    await writer.put("brief")
    await writer.delete("brief")
    await process.catch_up()
    before = process.replica.position
    async with backup.restored() as other:
        await other.put("b", "c")
    await repaired(process)
    assert process.replica.records.keys() == {"a", "b", "c"}
    assert process.replica.position.epoch != before.epoch
    assert outcomes(process) == {"merged": 1}


@pytest.mark.own_redis
async def test_of_two_changes_of_one_service_the_later_is_kept(
    process: Process, writer: Writer, backup: Backup
) -> None:
    now = int(time.time())
    await writer.put("both", "ours", "theirs", "removed there")
    await process.catch_up()
    backup.take()
    await writer.put("both", version="2.0.0", updated_at={"seconds": now})
    await writer.put("ours", version="2.0.0")
    await process.catch_up()
    async with backup.restored() as other:
        await other.put("both", version="3.0.0", updated_at={"seconds": now + 9})
        await other.put("theirs", version="3.0.0")
        await other.delete("removed there")
    await repaired(process)

    versions = {name: record.version() for name, record in process.replica.records.items()}
    assert versions == {"both": "3.0.0", "ours": "2.0.0", "theirs": "3.0.0"}


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True], ids=["in between nothing", "in between another change"])
async def test_who_knows_more_and_comes_late_adds_it(
    redis: RedisProcess,
    process: Process,
    writer: Writer,
    client: Redis,
    written: bool,  # noqa: FBT001
) -> None:
    async with Process(redis.url, repair=True).running() as second:
        await writer.put("a", "gone")
        await process.catch_up()
        await second.catch_up()
        await second.stall()
        await writer.put("b")
        await writer.delete("gone")
        await process.catch_up()
        await process.stall()
        second.start()
        await client.flushall()
        await eventually(lambda: outcomes(second) == {"continued": 1})
        await second.catch_up()
        assert second.replica.records.keys() == {"a", "gone"}
        expected = {"a", "b"}
        if written:
            await writer.refresh()
            await writer.put("between")
            expected.add("between")
            await second.catch_up()
        process.start()
        await repaired(process, second, times=2)

        for each in (process, second):
            assert each.replica.records.keys() == expected
        assert outcomes(process) == ({"merged": 1} if written else {"continued": 1})


async def test_of_several_who_knows_most_repairs(
    redis: RedisProcess, process: Process, writer: Writer, client: Redis
) -> None:
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(Process(redis.url, repair=True).running()) for _ in range(2)]
        await writer.put("a")
        for each in (process, *others):
            await each.catch_up()
        for other in others:
            await other.stall()
        await writer.put("b")
        await process.catch_up()
        await process.stall()
        await client.flushall()
        for each in (*others, process):
            each.start()
        await repaired(process, *others)

        assert outcomes(process) == {"continued": 1}
        assert outcomes(*others) == {}
        for each in (process, *others):
            assert each.replica.records.keys() == {"a", "b"}
            assert each.follower.resyncs == 0


@pytest.mark.slow
@pytest.mark.store_limits(repair_batch=2)
async def test_a_repair_that_was_given_up_is_ended_by_another(
    redis: RedisProcess,
    limits: StoreLimits,
    process: Process,
    writer: Writer,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Process(redis.url, limits=limits, repair=True).running() as second:
        await writer.put(*"abcdef")
        await second.catch_up()
        await second.stall()
        await writer.put("g")
        await process.catch_up()
        before = second.replica.position
        put, batches = process.store.repairs.restore_services, 0

        async def put_services(services: Sequence[RestoredService], plan: str) -> None:
            nonlocal batches
            if batches == 2:
                await asyncio.Event().wait()  # as if it were stopped
            batches += 1
            await put(services, plan)

        monkeypatch.setattr(process.store.repairs, "put_services", put_services)
        await client.flushall()
        await eventually(lambda: batches == 2)
        second.start()
        await repaired(second)

        assert second.replica.position == before
        assert outcomes(second) == {"continued": 1}
        monkeypatch.undo()
        with pytest.raises(TurnLost):
            await put([RestoredService("b", b"", 0, "")], "")
        with pytest.raises(TurnLost):
            await process.store.repairs.restore_events([], restart=True)
        with pytest.raises(TurnLost):
            await process.store.repairs.finish_repair(before, restart=True, known=before, common=0)
        await process.stall()
        process.start()
        await repaired(second, process, times=2)
        assert second.replica.records.keys() == process.replica.records.keys() == set("abcdefg")
        assert second.follower.resyncs == process.follower.resyncs == 0


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True], ids=["nothing was written", "something was written"])
async def test_a_process_that_begins_with_an_emptied_store_hides_nothing(
    redis: RedisProcess,
    process: Process,
    writer: Writer,
    client: Redis,
    written: bool,  # noqa: FBT001
) -> None:
    await writer.put("a", "b")
    await process.catch_up()
    before = process.replica.position
    observer, watching_fresh = Observer(), Observer()
    async with observer.watching(process.hub):
        await process.stall()
        await client.flushall()
        async with Process(redis.url, repair=True).running() as fresh:
            await fresh.catch_up()
            async with watching_fresh.watching(fresh.hub):
                expected = {"a", "b"}
                if written:
                    await writer.refresh()
                    await writer.put("c")
                    await fresh.catch_up()
                    expected.add("c")
                process.start()
                await repaired(process, fresh)
                await eventually(lambda: watching_fresh.state.keys() == expected)
        if written:
            await eventually(lambda: bool(observer.events))

    assert observer.received() == ([(REGISTERED, "c", RESYNC)] if written else [])
    assert (process.replica.position == before) == (not written)


@pytest.mark.slow
@pytest.mark.store_limits(repair_gather_seconds=1.0)
async def test_while_a_store_is_repaired_who_begins_waits(
    redis: RedisProcess, limits: StoreLimits, process: Process, writer: Writer, client: Redis
) -> None:
    await writer.put("a")
    await process.catch_up()
    await client.flushall()
    await eventually(lambda: not process.follower.connected)
    async with Process(redis.url, limits=limits, repair=True).running() as fresh:
        await asyncio.sleep(0.2)
        assert not fresh.follower.loaded
        refused = await writer.store.writer.delete_service("a", epoch=writer.epoch, expected=1, reason=CLIENT_REQUEST)
        assert isinstance(refused, EpochChanged)
        await repaired(process)
        await fresh.catch_up()
        assert fresh.replica.position == process.replica.position


@pytest.mark.slow
async def test_a_repair_that_nobody_ends_keeps_nobody_from_beginning(
    redis: RedisProcess, process: Process, writer: Writer, client: Redis
) -> None:
    await writer.put("a")
    await process.catch_up()
    await client.flushall()
    await eventually(lambda: not process.follower.connected)
    await process.stall()
    async with Process(redis.url, repair=True).running() as fresh:
        await fresh.catch_up()
        await writer.refresh()
        await writer.put("b")
        await fresh.catch_up()
        process.start()
        await repaired(process, fresh)
        assert fresh.replica.records.keys() == process.replica.records.keys() == {"a", "b"}


@pytest.mark.own_redis
async def test_leases_begin_anew_and_documents_are_written_again(
    process: Process, writer: Writer, client: Redis, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = writer.store.keys
    monkeypatch.setattr(process.follower.repairer, "_default_ttl", 50)
    await writer.put("kept", ttl=50)
    await client.zadd(keys.leases, {"kept": int(time.time() * 1000) + 500})  # in the backup it is about to end
    await process.catch_up()
    backup.take()
    await writer.put("lost", ttl=50)
    await process.catch_up()
    async with backup.restored():
        pass
    await repaired(process)
    await client.connection_pool.disconnect()

    now = time.time() * 1000
    for name in ("kept", "lost"):
        deadline = await client.zscore(keys.leases, name)
        assert deadline is not None
        assert 40_000 < deadline - now <= 50_000
    assert await client.smembers(keys.bare) == {b"lost"}


@pytest.mark.slow
async def test_owners_survive(redis: RedisProcess, process: Process, writer: Writer, client: Redis) -> None:
    writer.claim = Claim("alice", exclusive=True)
    await writer.put("hers", "gone")
    await writer.delete("gone")
    await process.catch_up()
    await client.flushall()
    await repaired(process)
    await writer.refresh()
    writer.claim = Claim("mallory", exclusive=True)
    with pytest.raises(PermissionDenied):
        await writer.put("hers")
    assert await client.hgetall(writer.store.keys.owned) == {b"alice": b"1"}
    # Also in a process that was told of the owner by the store, and that finds it taken by somebody else.
    async with Process(redis.url, repair=True).running() as second:
        await second.catch_up()
        for each in (process, second):
            await each.stall()
        await client.flushall()
        await writer.refresh()
        await writer.put("hers", version="6.6.6", updated_at={"seconds": int(time.time()) + 99})
        second.start()
        await repaired(second)
        assert await writer.store.reader.read_owner("hers") == "alice"
        assert second.replica.records["hers"].version() != "6.6.6"
        assert await client.hgetall(writer.store.keys.owned) == {b"alice": b"1"}


@pytest.mark.own_redis
async def test_of_a_past_that_cannot_be_told_all_registrations_are_kept_and_that_is_said(
    redis: RedisProcess, writer: Writer, backup: Backup
) -> None:
    async with Process(redis.url, history=1, repair=True).running() as process:
        await writer.put("gone", "a")
        await process.catch_up()
        backup.take()
        await writer.delete("gone")
        await writer.put("lost", "later")
        await process.catch_up()
        observer = Observer()
        async with observer.watching(process.hub):
            async with backup.restored() as other:
                await other.put("x", "y", "z", "later", updated_at={"seconds": 1})
                await other.forget_past()
            await repaired(process)
            await eventually(lambda: any(event.error for event in observer.events))

        assert process.replica.records.keys() == {"gone", "a", "lost", "later", "x", "y", "z"}
        assert observer.events[-1].type == EventType.EVENT_TYPE_REGISTRY_ERROR
        kept = [(REGISTERED, name, RESYNC) for name in ("gone", "x", "y", "z")]
        assert sorted(observer.received()[:-1]) == [*kept, (UPDATED, "later", RESYNC)]


@pytest.mark.store_limits(repair_batch=2)
async def test_a_store_that_goes_away_during_the_repair_is_repaired_when_it_is_back(
    process: Process, writer: Writer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writer.put(*"abcdef")
    await process.catch_up()
    before = process.replica.position
    put = process.store.repairs.restore_services

    async def put_services(services: Sequence[RestoredService], plan: str) -> None:
        await put(services, plan)
        if "c" in {each.name for each in services}:
            monkeypatch.undo()
            raise StoreUnavailable

    monkeypatch.setattr(process.store.repairs, "put_services", put_services)
    await client.flushall()
    await repaired(process)
    assert process.replica.position == before
    assert process.follower.resyncs == 0
