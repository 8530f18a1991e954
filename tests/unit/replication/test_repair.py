"""Processes restore the state that the store has lost; the one with the newest revision goes first."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from ossa.registry.v1.event_pb2 import EventType
from registry_server.errors import PermissionDenied, StoreUnavailable
from registry_server.security.identity import Claim
from registry_server.store import EpochChanged, Position, RestoredService, StoreLimits, TurnLost
from registry_server.store.keys import DATA_FORMAT
from tests.support.followers import (
    CLIENT_REQUEST,
    REGISTERED,
    RESYNC,
    UPDATED,
    Backup,
    FollowerProcess,
    Observer,
    Writer,
    eventually,
)
from tests.support.redis_process import RedisProcess


@pytest.fixture
async def process(redis: RedisProcess, limits: StoreLimits) -> AsyncIterator[FollowerProcess]:
    async with FollowerProcess(redis.url, repair=True, limits=limits).running() as running:
        yield running


def outcomes(*processes: FollowerProcess) -> dict[str, int]:
    """Return the number of repairs of all processes by outcome."""
    counts: dict[str, int] = {}
    for process in processes:
        assert process.follower.repairer is not None
        for outcome, count in process.follower.repairer.counters.repairs.items():
            counts[outcome] = counts.get(outcome, 0) + count
    return counts


async def wait_repaired(*processes: FollowerProcess, times: int = 1) -> None:
    """Wait until ``times`` repairs are complete and all processes are caught up."""
    await eventually(lambda: sum(outcomes(*processes).values()) >= times)
    for process in processes:
        await process.catch_up()


async def test_emptied_store_continues_its_history(process: FollowerProcess, writer: Writer, client: Redis) -> None:
    await writer.write_services("a", "gone", "c")
    await writer.write_services("a", version="2.0.0")
    await writer.remove_services("gone")
    await process.catch_up()
    before = process.replica.position
    events: Any = await client.xrange(writer.store.keys.events)
    observer = Observer()
    async with observer.watching(process.hub):
        await client.flushall()
        await wait_repaired(process)
        await writer.refresh()
        await writer.write_services("next")
        await eventually(lambda: bool(observer.events))

    assert observer.received() == [(REGISTERED, "next", CLIENT_REQUEST)]
    assert process.replica.position == Position(before.epoch, before.revision + 1)
    now: Any = await client.xrange(writer.store.keys.events)
    assert now[:-1] == events
    assert process.connections == [True, False, True]
    assert (process.follower.resyncs, outcomes(process)) == (0, {"continued": 1})
    past = process.replica.history.since(1)
    assert past is not None
    assert [change.revision for change in past] == [2, 3, 4, 5, 6]


@pytest.mark.own_redis
async def test_store_restored_from_older_data_continues_its_history(
    process: FollowerProcess, writer: Writer, client: Redis, backup: Backup
) -> None:
    await writer.write_services("same", "changed", "gone")
    await process.catch_up()
    backup.copy_files()
    await writer.write_services("changed", version="2.0.0")
    await writer.remove_services("gone")
    await writer.write_services("lost")
    await process.catch_up()
    before = process.replica.position
    observer = Observer()
    async with observer.watching(process.hub):
        async with backup.restored():
            pass
        await wait_repaired(process)
        await writer.refresh()
        await writer.write_services("next")
        await eventually(lambda: bool(observer.events))

    assert observer.received() == [(REGISTERED, "next", CLIENT_REQUEST)]
    assert process.replica.records.keys() == {"same", "changed", "lost", "next"}
    assert process.replica.position == Position(before.epoch, before.revision + 1)
    entries: Any = await client.xrange(writer.store.keys.events)
    ids = [entry_id for entry_id, _ in entries]
    assert ids == [f"{revision}-0".encode() for revision in range(1, 8)]
    assert outcomes(process) == {"continued": 1}


@pytest.mark.own_redis
async def test_store_older_than_the_kept_history_continues_it(
    redis: RedisProcess, writer: Writer, backup: Backup
) -> None:
    async with FollowerProcess(redis.url, history=3, repair=True).running() as process:
        await writer.write_services("same", "changed", "gone")
        await process.catch_up()
        backup.copy_files()
        await writer.write_services("changed", version="2.0.0")
        await writer.remove_services("gone")
        await writer.write_services("x", "y", "z", "lost")
        await process.catch_up()
        before = process.replica.position
        observer = Observer()
        async with observer.watching(process.hub):
            async with backup.restored():
                pass
            await wait_repaired(process)

        assert observer.events == []
        assert process.replica.position == before
        assert outcomes(process) == {"continued": 1}


@pytest.mark.own_redis
@pytest.mark.parametrize("others", [1, 3, 5], ids=["fewer", "equal", "more"])
async def test_concurrent_histories_are_merged_in_a_new_epoch(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, backup: Backup, others: int
) -> None:
    await writer.write_services("a", "gone")
    await process.catch_up()
    backup.copy_files()
    await writer.write_services("lost")
    await writer.write_services("a", version="2.0.0")
    await writer.remove_services("gone")
    await process.catch_up()
    before = process.replica.position
    observer = Observer()
    names = {f"other{i}" for i in range(others)}
    async with observer.watching(process.hub):
        async with backup.restored() as other:
            await other.write_services(*sorted(names))
        await wait_repaired(process)
        await eventually(lambda: observer.state.keys() == {"a", "lost", *names})

    assert sorted(observer.received()) == [(REGISTERED, name, RESYNC) for name in sorted(names)]
    assert outcomes(process) == {"merged": 1}
    assert process.replica.position == Position(process.replica.position.epoch, max(before.revision, 2 + others))
    assert process.replica.position.epoch != before.epoch
    assert process.replica.records["a"].version() == "2.0.0"
    async with FollowerProcess(redis.url, repair=True).running() as fresh:
        await fresh.catch_up()
        assert fresh.replica.records.keys() == process.replica.records.keys()


@pytest.mark.own_redis
async def test_reused_revisions_start_a_new_epoch_even_if_nothing_is_lost(
    process: FollowerProcess, writer: Writer, backup: Backup
) -> None:
    await writer.write_services("a")
    await process.catch_up()
    backup.copy_files()
    await writer.write_services("brief")
    await writer.remove_services("brief")
    await process.catch_up()
    before = process.replica.position
    async with backup.restored() as other:
        await other.write_services("b", "c")
    await wait_repaired(process)
    assert process.replica.records.keys() == {"a", "b", "c"}
    assert process.replica.position.epoch != before.epoch
    assert outcomes(process) == {"merged": 1}


@pytest.mark.own_redis
async def test_merge_keeps_the_later_change_of_a_service(
    process: FollowerProcess, writer: Writer, backup: Backup
) -> None:
    now = int(time.time())
    await writer.write_services("both", "ours", "theirs", "removed later")
    await process.catch_up()
    backup.copy_files()
    await writer.write_services("both", version="2.0.0", updated_at={"seconds": now})
    await writer.write_services("ours", version="2.0.0")
    await process.catch_up()
    async with backup.restored() as other:
        await other.write_services("both", version="3.0.0", updated_at={"seconds": now + 9})
        await other.write_services("theirs", version="3.0.0")
        await other.remove_services("removed later")
    await wait_repaired(process)

    versions = {name: record.version() for name, record in process.replica.records.items()}
    assert versions == {"both": "3.0.0", "ours": "2.0.0", "theirs": "3.0.0"}


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True], ids=["no write between", "write between"])
async def test_late_process_with_newer_state_completes_the_repair(
    redis: RedisProcess,
    process: FollowerProcess,
    writer: Writer,
    client: Redis,
    written: bool,  # noqa: FBT001
) -> None:
    async with FollowerProcess(redis.url, repair=True).running() as second:
        await writer.write_services("a", "gone")
        await process.catch_up()
        await second.catch_up()
        await second.pause()
        await writer.write_services("b")
        await writer.remove_services("gone")
        await process.catch_up()
        await process.pause()
        second.start()
        await client.flushall()
        await eventually(lambda: outcomes(second) == {"continued": 1})
        await second.catch_up()
        assert second.replica.records.keys() == {"a", "gone"}
        expected = {"a", "b"}
        if written:
            await writer.refresh()
            await writer.write_services("between")
            expected.add("between")
            await second.catch_up()
        process.start()
        await wait_repaired(process, second, times=2)

        for each in (process, second):
            assert each.replica.records.keys() == expected
        assert outcomes(process) == ({"merged": 1} if written else {"continued": 1})


@pytest.mark.slow
async def test_process_with_the_newest_revision_repairs(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(FollowerProcess(redis.url, repair=True).running()) for _ in range(2)]
        await writer.write_services("a")
        for each in (process, *others):
            await each.catch_up()
        for other in others:
            await other.pause()
        await writer.write_services("b")
        await process.catch_up()
        await process.pause()
        await client.flushall()
        for each in (*others, process):
            each.start()
        await wait_repaired(process, *others)

        assert outcomes(process) == {"continued": 1}
        assert outcomes(*others) == {}
        for each in (process, *others):
            assert each.replica.records.keys() == {"a", "b"}
            assert each.follower.resyncs == 0


@pytest.mark.slow
@pytest.mark.store_limits(repair_batch=2)
async def test_abandoned_repair_is_completed_by_another_process(
    redis: RedisProcess,
    limits: StoreLimits,
    process: FollowerProcess,
    writer: Writer,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with FollowerProcess(redis.url, limits=limits, repair=True).running() as second:
        await writer.write_services(*"abcdef")
        await second.catch_up()
        await second.pause()
        await writer.write_services("g")
        await process.catch_up()
        before = second.replica.position
        restore, batches = process.store.repairs.restore_services, 0

        async def restore_services(services: Sequence[RestoredService], plan: str) -> None:
            nonlocal batches
            if batches == 2:
                await asyncio.Event().wait()  # simulates a suspended process
            batches += 1
            await restore(services, plan)

        monkeypatch.setattr(process.store.repairs, "restore_services", restore_services)
        await client.flushall()
        await eventually(lambda: batches == 2)
        second.start()
        await wait_repaired(second)

        assert second.replica.position == before
        assert outcomes(second) == {"continued": 1}
        monkeypatch.undo()
        with pytest.raises(TurnLost):
            await restore([RestoredService("b", b"", 0, "")], "")
        with pytest.raises(TurnLost):
            await process.store.repairs.restore_events([], restart=True)
        with pytest.raises(TurnLost):
            await process.store.repairs.finish_repair(before, restart=True, known=before, common=0)
        await process.pause()
        process.start()
        await wait_repaired(second, process, times=2)
        assert second.replica.records.keys() == process.replica.records.keys() == set("abcdefg")
        assert second.follower.resyncs == process.follower.resyncs == 0


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True], ids=["no write", "one write"])
async def test_process_started_on_an_emptied_store_allows_the_repair(
    redis: RedisProcess,
    process: FollowerProcess,
    writer: Writer,
    client: Redis,
    written: bool,  # noqa: FBT001
) -> None:
    await writer.write_services("a", "b")
    await process.catch_up()
    before = process.replica.position
    observer, watching_fresh = Observer(), Observer()
    async with observer.watching(process.hub):
        await process.pause()
        await client.flushall()
        async with FollowerProcess(redis.url, repair=True).running() as fresh:
            await fresh.catch_up()
            async with watching_fresh.watching(fresh.hub):
                expected = {"a", "b"}
                if written:
                    await writer.refresh()
                    await writer.write_services("c")
                    await fresh.catch_up()
                    expected.add("c")
                process.start()
                await wait_repaired(process, fresh)
                await eventually(lambda: watching_fresh.state.keys() == expected)
        if written:
            await eventually(lambda: bool(observer.events))

    assert observer.received() == ([(REGISTERED, "c", RESYNC)] if written else [])
    assert (process.replica.position == before) == (not written)


@pytest.mark.slow
@pytest.mark.store_limits(repair_gather_seconds=1.0)
async def test_process_started_during_a_repair_waits_for_it(
    redis: RedisProcess, limits: StoreLimits, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a")
    await process.catch_up()
    await client.flushall()
    await eventually(lambda: not process.follower.connected)
    async with FollowerProcess(redis.url, limits=limits, repair=True).running() as fresh:
        await asyncio.sleep(0.2)
        assert not fresh.follower.loaded
        seen = Position(writer.epoch, 0)
        refused = await writer.store.writer.delete_service("a", seen=seen, expected=1, reason=CLIENT_REQUEST)
        assert isinstance(refused, EpochChanged)
        await wait_repaired(process)
        await fresh.catch_up()
        assert fresh.replica.position == process.replica.position


@pytest.mark.slow
async def test_unfinished_repair_does_not_block_a_new_process(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a")
    await process.catch_up()
    await client.flushall()
    await eventually(lambda: not process.follower.connected)
    await process.pause()
    async with FollowerProcess(redis.url, repair=True).running() as fresh:
        await fresh.catch_up()
        await writer.refresh()
        await writer.write_services("b")
        await fresh.catch_up()
        process.start()
        await wait_repaired(process, fresh)
        assert fresh.replica.records.keys() == process.replica.records.keys() == {"a", "b"}


@pytest.mark.own_redis
async def test_repair_restarts_leases_and_rewrites_documents(
    process: FollowerProcess, writer: Writer, client: Redis, backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = writer.store.keys
    monkeypatch.setattr(process.follower.repairer, "_default_ttl", 50)
    await writer.write_services("kept", ttl=50)
    await client.zadd(keys.leases, {"kept": int(time.time() * 1000) + 500})  # about to expire in the backup
    await process.catch_up()
    backup.copy_files()
    await writer.write_services("lost", ttl=50)
    await process.catch_up()
    async with backup.restored():
        pass
    await wait_repaired(process)
    await client.connection_pool.disconnect()

    now = time.time() * 1000
    for name in ("kept", "lost"):
        deadline = await client.zscore(keys.leases, name)
        assert deadline is not None
        assert 40_000 < deadline - now <= 50_000
    assert await client.smembers(keys.bare) == {b"lost"}


@pytest.mark.slow
async def test_repair_restores_owners(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    writer.claim = Claim("alice", exclusive=True)
    await writer.write_services("hers", "gone")
    await writer.remove_services("gone")
    await process.catch_up()
    await client.flushall()
    await wait_repaired(process)
    await writer.refresh()
    writer.claim = Claim("mallory", exclusive=True)
    with pytest.raises(PermissionDenied):
        await writer.write_services("hers")
    assert await client.hgetall(writer.store.keys.owned) == {b"alice": b"1"}
    # The same for a process that read the owner from the store, and then finds the service owned by another caller.
    async with FollowerProcess(redis.url, repair=True).running() as second:
        await second.catch_up()
        for each in (process, second):
            await each.pause()
        await client.flushall()
        await writer.refresh()
        await writer.write_services("hers", version="6.6.6", updated_at={"seconds": int(time.time()) + 99})
        second.start()
        await wait_repaired(second)
        assert await writer.store.reader.read_owner("hers") == "alice"
        assert second.replica.records["hers"].version() != "6.6.6"
        assert await client.hgetall(writer.store.keys.owned) == {b"alice": b"1"}


@pytest.mark.own_redis
async def test_unknown_common_history_keeps_all_services_and_is_reported(
    redis: RedisProcess, writer: Writer, backup: Backup
) -> None:
    async with FollowerProcess(redis.url, history=1, repair=True).running() as process:
        await writer.write_services("gone", "a")
        await process.catch_up()
        backup.copy_files()
        await writer.remove_services("gone")
        await writer.write_services("lost", "later")
        await process.catch_up()
        observer = Observer()
        async with observer.watching(process.hub):
            async with backup.restored() as other:
                await other.write_services("x", "y", "z", "later", updated_at={"seconds": 1})
                await other.trim_stream()
            await wait_repaired(process)
            await eventually(lambda: any(event.error for event in observer.events))

        assert process.replica.records.keys() == {"gone", "a", "lost", "later", "x", "y", "z"}
        assert observer.events[-1].type == EventType.EVENT_TYPE_REGISTRY_ERROR
        kept = [(REGISTERED, name, RESYNC) for name in ("gone", "x", "y", "z")]
        assert sorted(observer.received()[:-1]) == [*kept, (UPDATED, "later", RESYNC)]


@pytest.mark.slow
@pytest.mark.store_limits(repair_batch=2)
async def test_interrupted_repair_completes_after_the_reconnect(
    process: FollowerProcess, writer: Writer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await writer.write_services(*"abcdef")
    await process.catch_up()
    before = process.replica.position
    restore = process.store.repairs.restore_services

    async def restore_services(services: Sequence[RestoredService], plan: str) -> None:
        await restore(services, plan)
        if "c" in {each.name for each in services}:
            monkeypatch.undo()
            raise StoreUnavailable

    monkeypatch.setattr(process.store.repairs, "restore_services", restore_services)
    await client.flushall()
    await wait_repaired(process)
    assert process.replica.position == before
    assert process.follower.resyncs == 0


async def test_secret_and_format_return_to_a_store_that_lost_them(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await process.catch_up()
    secret = process.replica.secret
    assert await client.get(writer.store.keys.secret) == secret

    await client.flushall()
    await wait_repaired(process)

    await eventually_stored(client, writer.store.keys.secret, secret)
    await eventually_stored(client, writer.store.keys.format, str(DATA_FORMAT).encode())
    async with FollowerProcess(redis.url).running() as other:
        await other.catch_up()
        assert other.replica.secret == secret


async def eventually_stored(client: Redis, key: str, value: bytes) -> None:
    async with asyncio.timeout(10):
        while await client.get(key) != value:
            await asyncio.sleep(0.01)
