import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import Redis

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.errors import CursorExpired
from registry_server.model.tokens import Cursor
from registry_server.store import Position, StoreLimits
from tests.support.followers import (
    CLIENT_REQUEST,
    QUICK,
    REGISTERED,
    RESYNC,
    UNREGISTERED,
    UPDATED,
    Backup,
    Observer,
    Process,
    Writer,
    eventually,
)
from tests.support.redis_process import RedisProcess

HEALTH_CHANGED = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED


@pytest.fixture
async def process(redis: RedisProcess) -> AsyncIterator[Process]:
    async with Process(redis.url).running() as running:
        yield running


# Loading.


async def test_a_store_is_loaded_with_its_past(redis: RedisProcess, writer: Writer) -> None:
    await writer.put("a", "b", "c")
    await writer.put("b", version="2.0.0")
    await writer.delete("a")

    async with Process(redis.url).running() as process:
        await process.catch_up()

        assert process.follower.loaded
        assert process.connections == [True]
        assert process.replica.records.keys() == {"b", "c"}
        past = process.replica.history.since(0)
        assert past is not None
        assert [(change.revision, change.type, change.name) for change in past] == [
            (1, REGISTERED, "a"),
            (2, REGISTERED, "b"),
            (3, REGISTERED, "c"),
            (4, UPDATED, "b"),
            (5, UNREGISTERED, "a"),
        ]
        assert [change.before and change.before.revision for change in past] == [None, None, None, 2, 1]


async def test_an_empty_store_is_loaded(process: Process) -> None:
    await process.catch_up()

    assert process.replica.records == {}
    assert process.replica.history.since(0) == []


async def test_a_watch_goes_on_in_a_process_that_began_later(redis: RedisProcess, writer: Writer) -> None:
    await writer.put("a", "b", "c")
    observer = Observer()

    async with Process(redis.url).running() as process:
        await process.catch_up()
        async with observer.watching(process.hub, Cursor(writer.epoch, 1)):
            await writer.put("d")
            await eventually(lambda: len(observer.events) == 3)

    assert observer.received() == [(REGISTERED, name, CLIENT_REQUEST) for name in "bcd"]


async def test_of_a_trimmed_stream_the_rest_is_the_past(redis: RedisProcess, writer: Writer, client: Redis) -> None:
    await writer.put(*"abcdef")
    await client.xtrim(writer.store.keys.events, maxlen=2, approximate=False)

    async with Process(redis.url).running() as process:
        await process.catch_up()

        assert process.replica.history.since(3) is None
        assert len(process.replica.history.since(4) or ()) == 2


async def test_a_stream_with_a_hole_gives_only_the_past_after_it(
    redis: RedisProcess, writer: Writer, client: Redis
) -> None:
    await writer.put(*"abcdef")
    await client.xdel(writer.store.keys.events, "3-0")

    async with Process(redis.url).running() as process:
        await process.catch_up()

        assert process.replica.history.since(2) is None
        assert len(process.replica.history.since(3) or ()) == 3


@asynccontextmanager
async def writing(writer: Writer) -> AsyncIterator[None]:
    """Registers 600 services and lets four tasks change them, and others, all the time."""
    names = [f"s{i:03}" for i in range(600)]
    await writer.put(*names)
    enough = False

    async def write(mine: list[str]) -> None:
        for i in itertools.count():
            if enough:
                return
            name = mine[i % len(mine)]
            if i % 3 == 0 and name in writer.revisions:
                await writer.delete(name)
            else:
                await writer.put(name, version=f"{i}.0.0")

    async with asyncio.TaskGroup() as group:
        for i in range(4):
            group.create_task(write([*names[i::4], f"new{i}"]))
        yield
        enough = True


@pytest.mark.store_limits(page=20)
async def test_a_load_while_others_write_ends_equal_to_the_store(
    redis: RedisProcess, limits: StoreLimits, writer: Writer
) -> None:
    processes = [Process(redis.url, limits=limits) for _ in range(3)]
    async with AsyncExitStack() as stack:
        async with writing(writer):
            for process in processes:
                await stack.enter_async_context(process.running())
                await eventually(partial(getattr, process.follower, "loaded"))
        for process in processes:
            await process.catch_up()
            assert process.follower.resyncs == 0


@pytest.mark.slow
@pytest.mark.store_limits(page=20)
async def test_a_load_that_takes_longer_than_the_stream_reaches_back_begins_anew(
    redis: RedisProcess, limits: StoreLimits, writer: Writer, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer.store, "_events_max_length", 4)
    await client.config_set("stream-node-max-entries", 4)
    process = Process(redis.url, limits=limits)
    async with AsyncExitStack() as stack:
        async with writing(writer):
            await stack.enter_async_context(process.running())
            await asyncio.sleep(0.3)
        await process.catch_up()


@pytest.mark.own_redis
async def test_a_store_that_is_away_at_first_is_loaded_when_it_comes(redis: RedisProcess, writer: Writer) -> None:
    await writer.put("a")
    await redis.stop()

    async with Process(redis.url).running() as process:
        await asyncio.sleep(0.1)
        assert not process.follower.loaded
        assert process.connections == []
        assert process.follower.lag > 0

        await redis.start()
        await process.catch_up()

        assert process.follower.lag == 0


@pytest.mark.own_redis
@pytest.mark.store_limits(page=10)
async def test_a_store_that_goes_away_during_the_load_is_loaded_when_it_is_back(
    redis: RedisProcess, limits: StoreLimits, writer: Writer
) -> None:
    await writer.put(*(f"s{i}" for i in range(600)))

    async with Process(redis.url, limits=limits).running() as process:
        await asyncio.sleep(0.05)
        redis.kill()
        await redis.restart()

        await process.catch_up()

    assert len(process.replica.records) == 600


# Following.


async def test_every_change_arrives_once_and_in_order(process: Process, writer: Writer) -> None:
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        for i in range(300):
            await writer.put(f"s{i % 7}", version=f"{i}.0.0")
            if i % 5 == 0:
                await writer.delete(f"s{i % 7}")
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 360)

    assert [event.revision for event in observer.events] == list(range(1, 361))
    assert process.follower.resyncs == 0


async def test_a_process_that_stalled_catches_up(process: Process, writer: Writer) -> None:
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        await process.stall()
        for i in range(3 * QUICK.tail_page):
            await writer.put(f"s{i % 20}")
        process.start()
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 3 * QUICK.tail_page)

    assert process.follower.resyncs == 0


@pytest.mark.own_redis
async def test_after_a_kill_of_redis_it_goes_on_where_it_was_without_a_resync(
    redis: RedisProcess, process: Process, writer: Writer
) -> None:
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        for round_ in range(3):
            await writer.put(f"before{round_}")
            redis.kill()
            await eventually(lambda: not process.follower.connected)
            assert process.follower.lag > 0
            await redis.restart()
            await writer.store.reconnect()
            await writer.put(f"after{round_}")
            await process.catch_up()
            assert process.follower.lag == 0
        await eventually(lambda: len(observer.events) == 6)

    assert process.follower.resyncs == 0
    assert process.connections == [True, False, True, False, True, False, True]


async def test_a_connection_that_is_cut_loses_nothing(process: Process, writer: Writer, client: Redis) -> None:
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        for i in range(30):
            await client.client_kill_filter(_type="normal", skipme=True)
            await writer.store.reconnect()
            await writer.put(f"s{i}")
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 30)

    assert process.follower.resyncs == 0


async def test_a_redis_that_is_made_a_replica_is_away_until_it_is_a_master_again(
    redis: RedisProcess, process: Process, writer: Writer, client: Redis
) -> None:
    await writer.put("a")
    await process.catch_up()

    await client.replicaof("127.0.0.1", redis.port)
    await eventually(lambda: False in process.connections)
    await client.replicaof("NO", "ONE")
    await writer.store.reconnect()
    await writer.put("b")
    await process.catch_up()

    assert process.replica.records.keys() == {"a", "b"}
    assert process.follower.resyncs == 0


# Histories that break.


def assert_expired(process: Process, *cursors: Cursor) -> None:
    """Nobody can go on from before: the numbers may mean other changes now."""
    for cursor in cursors:
        with pytest.raises(CursorExpired):
            process.hub._changes_since(cursor)


async def test_the_difference_of_a_resync_is_exactly_what_differs(
    process: Process, writer: Writer, client: Redis
) -> None:
    healthy, sick = ({"status": status} for status in (1, HealthStatus.HEALTH_STATUS_UNHEALTHY))
    await writer.put("same", "changed", "sick", "gone", "back", health=healthy)
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        await process.stall()
        await writer.put("changed", version="2.0.0", health=healthy)
        await writer.put("sick", health=sick)
        await writer.delete("gone", "back")
        await writer.put("new", "brief")
        await writer.put("back", health=healthy)
        await writer.delete("brief")
        await client.delete(writer.store.keys.events)
        process.start()
        await process.catch_up()
        await eventually(lambda: len(observer.events) >= 5)

    assert sorted(observer.received()) == sorted(
        [
            (UPDATED, "changed", RESYNC),
            (HEALTH_CHANGED, "sick", RESYNC),
            (UNREGISTERED, "gone", RESYNC),
            (REGISTERED, "new", RESYNC),
            (UPDATED, "back", RESYNC),
        ]
    )
    assert {event.revision for event in observer.events} == {process.replica.revision} == {13}
    by_name = {event.service.name: event for event in observer.events}
    assert by_name["sick"].previous_health == HealthStatus.HEALTH_STATUS_HEALTHY
    assert by_name["gone"].service.health.status == HealthStatus.HEALTH_STATUS_HEALTHY
    assert (process.follower.resyncs, process.follower.epoch_changes) == (1, 0)


async def test_an_emptied_store_is_noticed_and_the_new_epoch_followed(
    process: Process, writer: Writer, client: Redis
) -> None:
    await writer.put("a", "b")
    await process.catch_up()
    before = process.replica.position
    observer = Observer()
    async with observer.watching(process.hub):
        await client.flushall()
        await process.catch_up()
        await writer.refresh()
        await writer.put("b", "c", "d")
        await process.catch_up()
        await eventually(lambda: observer.state.keys() == {"b", "c", "d"})

    assert sorted(observer.received()[:2]) == [(UNREGISTERED, "a", RESYNC), (UNREGISTERED, "b", RESYNC)]
    assert observer.received()[2:] == [(REGISTERED, name, CLIENT_REQUEST) for name in "bcd"]
    assert process.replica.revision == 3
    assert_expired(process, Cursor(*before), Cursor(before.epoch, 1))


async def test_a_store_that_is_emptied_and_written_at_once_is_noticed(
    process: Process, writer: Writer, client: Redis
) -> None:
    await writer.put("a", "b")
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        await process.stall()
        await client.flushall()
        await writer.refresh()
        await writer.put("b", "c", "d", "e")  # more than there was before
        process.start()
        await process.catch_up()
        await eventually(lambda: observer.state.keys() == {"b", "c", "d", "e"})

    assert process.follower.resyncs == 1


async def test_a_stream_trimmed_past_its_position_is_noticed(process: Process, writer: Writer, client: Redis) -> None:
    await writer.put("a", "b")
    await process.catch_up()
    position = process.replica.position
    observer = Observer()
    async with observer.watching(process.hub):
        await process.stall()
        await writer.put("a", "c", "a", "d", "a")
        await client.xtrim(writer.store.keys.events, maxlen=1, approximate=False)
        process.start()
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 3)

    assert sorted(observer.received()) == [(REGISTERED, "c", RESYNC), (REGISTERED, "d", RESYNC), (UPDATED, "a", RESYNC)]
    assert process.replica.position == Position(position.epoch, 7)
    assert_expired(process, Cursor(*position))


async def test_a_stream_that_is_deleted_while_level_costs_nothing(
    process: Process, writer: Writer, client: Redis
) -> None:
    await writer.put("a")
    await process.catch_up()

    await client.delete(writer.store.keys.events)
    await writer.put("b", "c")
    await process.catch_up()

    assert process.follower.resyncs == 0


async def test_a_stream_that_is_deleted_with_what_was_not_read_is_noticed(
    process: Process, writer: Writer, client: Redis
) -> None:
    await writer.put("a")
    await process.catch_up()
    await process.stall()
    await writer.put("b")
    await client.delete(writer.store.keys.events)
    process.start()

    await process.catch_up()

    assert process.replica.records.keys() == {"a", "b"}
    assert process.follower.resyncs == 1


async def test_a_difference_too_large_to_tell_makes_watchers_start_over(
    redis: RedisProcess, writer: Writer, client: Redis
) -> None:
    await writer.put("a", "b")
    async with Process(redis.url, fits=False).running() as process:
        await process.catch_up()
        observer, again = Observer(), Observer()
        async with observer.watching(process.hub):
            await client.flushall()
            await process.catch_up()
            await eventually(lambda: observer.end is not None)

        assert isinstance(observer.end, CursorExpired)
        assert observer.events == []
        async with again.watching(process.hub):
            assert again.state == {}


@pytest.mark.own_redis
async def test_the_state_tells_what_the_follower_does(process: Process, writer: Writer, redis: RedisProcess) -> None:
    await eventually(lambda: process.follower.state == "following")
    redis.pause()
    await eventually(lambda: process.follower.state == "disconnected")
    redis.resume()
    await eventually(lambda: process.follower.state == "following")
    process.follower.report_inconsistency("a test says so")
    assert process.follower.state == "resyncing"
    await writer.put("a")
    await process.catch_up()
    await eventually(lambda: process.follower.state == "following")
    async with Process("redis://127.0.0.1:1").running() as another:
        assert another.follower.state == "loading"


async def test_the_lag_of_each_event_is_counted_from_its_commit(process: Process, writer: Writer) -> None:
    await process.stall()
    await writer.put("late")
    await asyncio.sleep(0.3)
    process.start()
    await process.catch_up()
    await writer.put("early")
    await process.catch_up()
    lag = process.follower.event_lag
    assert sum(lag.counts) == 2
    assert lag.sum >= 0.3


async def test_somebody_else_may_notice_first(process: Process, writer: Writer) -> None:
    await writer.put("a")
    await process.catch_up()

    process.follower.report_inconsistency("a test says so")
    await eventually(lambda: process.follower.resyncs == 1)
    await writer.put("b")
    await process.catch_up()

    assert process.follower.resyncs == 1


@pytest.mark.own_redis
async def test_a_resync_that_the_store_interrupts_is_done_when_it_is_back(
    redis: RedisProcess, process: Process, writer: Writer, client: Redis
) -> None:
    await writer.put("a")
    await process.catch_up()
    await process.stall()
    await writer.put("b")
    await client.delete(writer.store.keys.events)
    process.follower.report_inconsistency("a test says so")
    redis.kill()
    process.start()
    await eventually(lambda: not process.follower.connected)

    await redis.restart()
    await process.catch_up()

    assert process.replica.records.keys() == {"a", "b"}


# Redis from a backup.


@pytest.mark.own_redis
async def test_a_store_restored_from_older_data_begins_another_epoch(
    process: Process, writer: Writer, backup: Backup
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
        await process.catch_up()
        await writer.refresh()
        await writer.put("next")
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 4)

    assert sorted(observer.received()[:3]) == [
        (REGISTERED, "gone", RESYNC),
        (UPDATED, "changed", RESYNC),
        (UNREGISTERED, "lost", RESYNC),
    ]
    assert observer.received()[3:] == [(REGISTERED, "next", CLIENT_REQUEST)]
    assert process.replica.revision == 4
    assert process.replica.position.epoch != before.epoch
    assert process.follower.resyncs == process.follower.epoch_changes == 1
    # Until the difference is applied, answers are as old as while the store was away.
    assert process.connections == [True, False, True]
    assert process.connected_at[-1] == Position(process.replica.position.epoch, 3)
    assert_expired(process, *(Cursor(before.epoch, revision) for revision in range(1, 7)))


@pytest.mark.own_redis
@pytest.mark.parametrize("others", [1, 2, 3, 4], ids=["fewer", "one fewer", "as many", "more"])
@pytest.mark.parametrize("after_a_resync", [False, True], ids=["", "after a resync"])
async def test_a_store_that_came_back_older_and_took_other_changes_is_noticed(
    redis: RedisProcess,
    process: Process,
    writer: Writer,
    backup: Backup,
    others: int,
    after_a_resync: bool,  # noqa: FBT001
) -> None:
    await writer.put("a")
    await process.catch_up()
    backup.take()
    await writer.put("lost1", "lost2", "lost3")
    await process.catch_up()
    if after_a_resync:
        process.follower.report_inconsistency("a test says so")
        await eventually(lambda: process.follower.resyncs == 1)
    before = process.replica.position
    observer = Observer()
    async with observer.watching(process.hub):
        async with backup.restored() as other:
            await other.put(*(f"other{i}" for i in range(others)))
        await process.catch_up()
        await eventually(lambda: observer.state.keys() == {"a", *(f"other{i}" for i in range(others))})

    assert {reason for _, _, reason in observer.received()} == {RESYNC}
    # What the numbers after the backup meant before is not what they mean now, here and in a process that begins now.
    assert_expired(process, *(Cursor(before.epoch, revision) for revision in range(2, 5)))
    async with Process(redis.url).running() as fresh:
        await fresh.catch_up()
        assert_expired(fresh, *(Cursor(before.epoch, revision) for revision in range(2, 5)))


@pytest.mark.own_redis
async def test_several_processes_that_notice_agree_on_one_epoch(
    redis: RedisProcess, process: Process, writer: Writer, backup: Backup
) -> None:
    async with Process(redis.url).running() as second:
        await writer.put("a")
        backup.take()
        await writer.put("lost")
        for each in (process, second):
            await each.catch_up()
        async with backup.restored() as other:
            await other.put("other", "another")
        for each in (process, second):
            await each.catch_up()
        await writer.refresh()
        await writer.put("next")
        for each in (process, second):
            await each.catch_up()

        assert process.replica.position == second.replica.position
        assert process.follower.resyncs == second.follower.resyncs == 1


@pytest.mark.own_redis
async def test_a_process_that_was_away_for_longer_than_the_stream_reaches_back_costs_the_others_nothing(
    redis: RedisProcess, process: Process, writer: Writer, client: Redis
) -> None:
    async with Process(redis.url).running() as second:
        await writer.put("a")
        for each in (process, second):
            await each.catch_up()
        await second.stall()
        redis.kill()
        await redis.restart()
        await writer.refresh()
        await writer.put("b", "c", "d")
        await process.catch_up()
        await client.xtrim(writer.store.keys.events, maxlen=1, approximate=False)

        second.start()
        await second.catch_up()

        assert second.replica.position == Position(writer.epoch, 4)
        assert (second.follower.resyncs, process.follower.resyncs) == (1, 0)
        assert len(process.replica.history.since(1) or ()) == 3
