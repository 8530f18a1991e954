import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import Redis

from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import HealthStatus
from ossa_common.cursors import Cursor
from registry_server.catalog.replica import Replica
from registry_server.errors import CursorExpired
from registry_server.replication.follower import Follower
from registry_server.runtime.clock import system_clock
from registry_server.store import Position, RedisStore, StoreLimits
from tests.support.followers import (
    CLIENT_REQUEST,
    EVERYTHING,
    QUICK,
    REGISTERED,
    RESYNC,
    UNREGISTERED,
    UPDATED,
    Backup,
    FollowerProcess,
    Observer,
    Writer,
    eventually,
    writing,
)
from tests.support.redis_process import RedisProcess

HEALTH_CHANGED = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED


@pytest.fixture
async def process(redis: RedisProcess) -> AsyncIterator[FollowerProcess]:
    async with FollowerProcess(redis.url).running() as running:
        yield running


# Loading.


async def test_load_includes_the_history_of_the_stream(redis: RedisProcess, writer: Writer) -> None:
    await writer.write_services("a", "b", "c")
    await writer.write_services("b", version="2.0.0")
    await writer.remove_services("a")

    async with FollowerProcess(redis.url).running() as process:
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


async def test_empty_store_is_loaded(process: FollowerProcess) -> None:
    await process.catch_up()

    assert process.replica.records == {}
    assert process.replica.history.since(0) == []


async def test_watch_resumes_in_a_process_that_started_later(redis: RedisProcess, writer: Writer) -> None:
    await writer.write_services("a", "b", "c")
    observer = Observer()

    async with FollowerProcess(redis.url).running() as process:
        await process.catch_up()
        async with observer.watching(process.hub, Cursor(writer.epoch, 1)):
            await writer.write_services("d")
            await eventually(lambda: len(observer.events) == 3)

    assert observer.received() == [(REGISTERED, name, CLIENT_REQUEST) for name in "bcd"]


async def test_history_starts_after_the_trimmed_part_of_the_stream(
    redis: RedisProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services(*"abcdef")
    await client.xtrim(writer.store.keys.events, maxlen=2, approximate=False)

    async with FollowerProcess(redis.url).running() as process:
        await process.catch_up()

        assert process.replica.history.since(3) is None
        assert len(process.replica.history.since(4) or ()) == 2


async def test_history_starts_after_a_gap_in_the_stream(redis: RedisProcess, writer: Writer, client: Redis) -> None:
    await writer.write_services(*"abcdef")
    await client.xdel(writer.store.keys.events, "3-0")

    async with FollowerProcess(redis.url).running() as process:
        await process.catch_up()

        assert process.replica.history.since(2) is None
        assert len(process.replica.history.since(3) or ()) == 3


@asynccontextmanager
async def concurrent_writes(writer: Writer) -> AsyncIterator[None]:
    """Register 600 services; within the block four tasks keep changing them and others."""
    names = [f"s{i:03}" for i in range(600)]
    await writer.write_services(*names)
    stopped = False

    async def change_services(names: list[str]) -> None:
        for i in itertools.count():
            if stopped:
                return
            name = names[i % len(names)]
            if i % 3 == 0 and name in writer.revisions:
                await writer.remove_services(name)
            else:
                await writer.write_services(name, version=f"{i}.0.0")

    async with asyncio.TaskGroup() as group:
        for i in range(4):
            group.create_task(change_services([*names[i::4], f"new{i}"]))
        yield
        stopped = True


@pytest.mark.store_limits(page=20)
async def test_load_during_concurrent_writes_equals_the_store(
    redis: RedisProcess, limits: StoreLimits, writer: Writer
) -> None:
    processes = [FollowerProcess(redis.url, limits=limits) for _ in range(3)]
    async with AsyncExitStack() as stack:
        async with concurrent_writes(writer):
            for process in processes:
                await stack.enter_async_context(process.running())
                await eventually(partial(getattr, process.follower, "loaded"))
        for process in processes:
            await process.catch_up()
            assert process.follower.resyncs == 0


@pytest.mark.slow
@pytest.mark.store_limits(page=20)
async def test_load_restarts_if_the_stream_was_trimmed_meanwhile(
    redis: RedisProcess, limits: StoreLimits, client: Redis
) -> None:
    await client.config_set("stream-node-max-entries", 4)
    process = FollowerProcess(redis.url, limits=limits)
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(writing(redis.url, events_max_length=4))
        async with concurrent_writes(writer):
            await stack.enter_async_context(process.running())
            await asyncio.sleep(0.3)
        await process.catch_up()


@pytest.mark.own_redis
async def test_store_unavailable_at_start_is_loaded_once_available(redis: RedisProcess, writer: Writer) -> None:
    await writer.write_services("a")
    await redis.stop()

    async with FollowerProcess(redis.url).running() as process:
        await asyncio.sleep(0.1)
        assert not process.follower.loaded
        assert process.connections == []
        assert process.follower.lag > 0

        await redis.start()
        await process.catch_up()

        assert process.follower.lag == 0


@pytest.mark.own_redis
@pytest.mark.store_limits(page=10)
async def test_load_interrupted_by_a_redis_restart_completes(
    redis: RedisProcess, limits: StoreLimits, writer: Writer
) -> None:
    await writer.write_services(*(f"s{i}" for i in range(600)))

    async with FollowerProcess(redis.url, limits=limits).running() as process:
        await asyncio.sleep(0.05)
        redis.kill()
        await redis.restart()

        await process.catch_up()

    assert len(process.replica.records) == 600


# Following.


async def test_every_change_is_applied_once_and_in_order(process: FollowerProcess, writer: Writer) -> None:
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        for i in range(300):
            await writer.write_services(f"s{i % 7}", version=f"{i}.0.0")
            if i % 5 == 0:
                await writer.remove_services(f"s{i % 7}")
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 360)

    assert [event.revision for event in observer.events] == list(range(1, 361))
    assert process.follower.resyncs == 0


@pytest.mark.slow
async def test_paused_process_catches_up(process: FollowerProcess, writer: Writer) -> None:
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        await process.pause()
        for i in range(3 * QUICK.tail_page):
            await writer.write_services(f"s{i % 20}")
        process.start()
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 3 * QUICK.tail_page)

    assert process.follower.resyncs == 0


@pytest.mark.own_redis
async def test_redis_restart_needs_no_resync(redis: RedisProcess, process: FollowerProcess, writer: Writer) -> None:
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        for round_ in range(3):
            await writer.write_services(f"before{round_}")
            redis.kill()
            await eventually(lambda: not process.follower.connected)
            assert process.follower.lag > 0
            await redis.restart()
            await writer.store.reconnect()
            await writer.write_services(f"after{round_}")
            await process.catch_up()
            assert process.follower.lag == 0
        await eventually(lambda: len(observer.events) == 6)

    assert process.follower.resyncs == 0
    assert process.connections == [True, False, True, False, True, False, True]


@pytest.mark.slow
async def test_cut_connections_lose_no_change(process: FollowerProcess, writer: Writer, client: Redis) -> None:
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        for i in range(30):
            await client.client_kill_filter(_type="normal", skipme=True)
            await writer.store.reconnect()
            await writer.write_services(f"s{i}")
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 30)

    assert process.follower.resyncs == 0


async def test_demoted_redis_counts_as_disconnected_until_promoted(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a")
    await process.catch_up()

    await client.replicaof("127.0.0.1", redis.port)
    await eventually(lambda: False in process.connections)
    await client.replicaof("NO", "ONE")
    await writer.store.reconnect()
    await writer.write_services("b")
    await process.catch_up()

    assert process.replica.records.keys() == {"a", "b"}
    assert process.follower.resyncs == 0


# Breaks in the history.


async def assert_expired(process: FollowerProcess, *cursors: Cursor) -> None:
    """Assert that no watch can resume from these cursors: their revisions may now denote other changes."""
    for cursor in cursors:
        with pytest.raises(CursorExpired):
            await process.hub.open_watch(EVERYTHING, cursor=cursor)


async def test_resync_publishes_exactly_the_differences(
    process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    healthy, sick = ({"status": status} for status in (1, HealthStatus.HEALTH_STATUS_UNHEALTHY))
    await writer.write_services("same", "changed", "sick", "gone", "back", health=healthy)
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        await process.pause()
        await writer.write_services("changed", version="2.0.0", health=healthy)
        await writer.write_services("sick", health=sick)
        await writer.remove_services("gone", "back")
        await writer.write_services("new", "brief")
        await writer.write_services("back", health=healthy)
        await writer.remove_services("brief")
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


async def test_emptied_store_is_detected_and_its_new_epoch_followed(
    process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a", "b")
    await process.catch_up()
    before = process.replica.position
    observer = Observer()
    async with observer.watching(process.hub):
        await client.flushall()
        await process.catch_up()
        await writer.refresh()
        await writer.write_services("b", "c", "d")
        await process.catch_up()
        await eventually(lambda: observer.state.keys() == {"b", "c", "d"})

    assert sorted(observer.received()[:2]) == [(UNREGISTERED, "a", RESYNC), (UNREGISTERED, "b", RESYNC)]
    assert observer.received()[2:] == [(REGISTERED, name, CLIENT_REQUEST) for name in "bcd"]
    assert process.replica.revision == 3
    await assert_expired(process, Cursor(*before), Cursor(before.epoch, 1))


async def test_store_emptied_and_rewritten_at_once_is_detected(
    process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a", "b")
    await process.catch_up()
    observer = Observer()
    async with observer.watching(process.hub):
        await process.pause()
        await client.flushall()
        await writer.refresh()
        await writer.write_services("b", "c", "d", "e")  # more than there was before
        process.start()
        await process.catch_up()
        await eventually(lambda: observer.state.keys() == {"b", "c", "d", "e"})

    assert process.follower.resyncs == 1


async def test_stream_trimmed_past_the_position_is_detected(
    process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a", "b")
    await process.catch_up()
    position = process.replica.position
    observer = Observer()
    async with observer.watching(process.hub):
        await process.pause()
        await writer.write_services("a", "c", "a", "d", "a")
        await client.xtrim(writer.store.keys.events, maxlen=1, approximate=False)
        process.start()
        await process.catch_up()
        await eventually(lambda: len(observer.events) == 3)

    assert sorted(observer.received()) == [(REGISTERED, "c", RESYNC), (REGISTERED, "d", RESYNC), (UPDATED, "a", RESYNC)]
    assert process.replica.position == Position(position.epoch, 7)
    await assert_expired(process, Cursor(*position))


async def test_deleted_stream_is_harmless_while_caught_up(
    process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a")
    await process.catch_up()

    await client.delete(writer.store.keys.events)
    await writer.write_services("b", "c")
    await process.catch_up()

    assert process.follower.resyncs == 0


async def test_stream_deleted_with_unread_events_is_detected(
    process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a")
    await process.catch_up()
    await process.pause()
    await writer.write_services("b")
    await client.delete(writer.store.keys.events)
    process.start()

    await process.catch_up()

    assert process.replica.records.keys() == {"a", "b"}
    assert process.follower.resyncs == 1


async def test_oversized_resync_expires_all_watches(redis: RedisProcess, writer: Writer, client: Redis) -> None:
    await writer.write_services("a", "b")
    async with FollowerProcess(redis.url, fits=False).running() as process:
        await process.catch_up()
        observer, later_observer = Observer(), Observer()
        async with observer.watching(process.hub):
            await client.flushall()
            await process.catch_up()
            await eventually(lambda: observer.end is not None)

        assert isinstance(observer.end, CursorExpired)
        assert observer.events == []
        async with later_observer.watching(process.hub):
            assert later_observer.state == {}


@pytest.mark.own_redis
async def test_state_reflects_the_follower_activity(
    process: FollowerProcess, writer: Writer, redis: RedisProcess
) -> None:
    await eventually(lambda: process.follower.state == "following")
    redis.pause()
    await eventually(lambda: process.follower.state == "disconnected")
    redis.resume()
    await eventually(lambda: process.follower.state == "following")
    process.follower.report_inconsistency("reported by a test")
    assert process.follower.state == "resyncing"
    await writer.write_services("a")
    await process.catch_up()
    await eventually(lambda: process.follower.state == "following")
    async with FollowerProcess("redis://127.0.0.1:1").running() as another:
        assert another.follower.state == "loading"


@pytest.mark.slow
async def test_event_lag_is_measured_from_the_commit(process: FollowerProcess, writer: Writer) -> None:
    await process.catch_up()
    await process.pause()
    await writer.write_services("late")
    await asyncio.sleep(0.3)
    process.start()
    await process.catch_up()
    await writer.write_services("early")
    await process.catch_up()
    lag = process.follower.event_lag
    assert sum(lag.counts) == 2
    assert lag.sum >= 0.3


async def test_reported_inconsistency_causes_one_resync(process: FollowerProcess, writer: Writer) -> None:
    await writer.write_services("a")
    await process.catch_up()

    process.follower.report_inconsistency("reported by a test")
    await eventually(lambda: process.follower.resyncs == 1)
    await writer.write_services("b")
    await process.catch_up()

    assert process.follower.resyncs == 1


@pytest.mark.own_redis
async def test_interrupted_resync_completes_after_the_reconnect(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    await writer.write_services("a")
    await process.catch_up()
    await process.pause()
    await writer.write_services("b")
    await client.delete(writer.store.keys.events)
    process.follower.report_inconsistency("reported by a test")
    redis.kill()
    process.start()
    await eventually(lambda: not process.follower.connected)

    await redis.restart()
    await process.catch_up()

    assert process.replica.records.keys() == {"a", "b"}


# Redis restored from a backup.


@pytest.mark.own_redis
async def test_store_restored_from_older_data_starts_a_new_epoch(
    process: FollowerProcess, writer: Writer, backup: Backup
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
        await process.catch_up()
        await writer.refresh()
        await writer.write_services("next")
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
    # Answers are stale until the difference is applied.
    assert process.connections == [True, False, True]
    assert process.connected_at[-1] == Position(process.replica.position.epoch, 3)
    await assert_expired(process, *(Cursor(before.epoch, revision) for revision in range(1, 7)))


@pytest.mark.own_redis
@pytest.mark.parametrize("others", [1, 2, 3, 4], ids=["two fewer", "one fewer", "equal", "more"])
@pytest.mark.parametrize("after_a_resync", [False, True], ids=["", "after a resync"])
async def test_older_store_that_accepted_other_changes_is_detected(
    redis: RedisProcess,
    process: FollowerProcess,
    writer: Writer,
    backup: Backup,
    others: int,
    after_a_resync: bool,  # noqa: FBT001
) -> None:
    await writer.write_services("a")
    await process.catch_up()
    backup.copy_files()
    await writer.write_services("lost1", "lost2", "lost3")
    await process.catch_up()
    if after_a_resync:
        process.follower.report_inconsistency("reported by a test")
        await eventually(lambda: process.follower.resyncs == 1)
    before = process.replica.position
    observer = Observer()
    async with observer.watching(process.hub):
        async with backup.restored() as other:
            await other.write_services(*(f"other{i}" for i in range(others)))
        await process.catch_up()
        await eventually(lambda: observer.state.keys() == {"a", *(f"other{i}" for i in range(others))})

    assert {reason for _, _, reason in observer.received()} == {RESYNC}
    # Revisions after the backup now denote other changes, in this process and in one that starts now.
    await assert_expired(process, *(Cursor(before.epoch, revision) for revision in range(2, 5)))
    async with FollowerProcess(redis.url).running() as fresh:
        await fresh.catch_up()
        await assert_expired(fresh, *(Cursor(before.epoch, revision) for revision in range(2, 5)))


@pytest.mark.own_redis
async def test_processes_agree_on_one_new_epoch(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, backup: Backup
) -> None:
    async with FollowerProcess(redis.url).running() as second:
        await writer.write_services("a")
        backup.copy_files()
        await writer.write_services("lost")
        for each in (process, second):
            await each.catch_up()
        async with backup.restored() as other:
            await other.write_services("other", "another")
        for each in (process, second):
            await each.catch_up()
        await writer.refresh()
        await writer.write_services("next")
        for each in (process, second):
            await each.catch_up()

        assert process.replica.position == second.replica.position
        assert process.follower.resyncs == second.follower.resyncs == 1


@pytest.mark.own_redis
async def test_process_that_missed_trimmed_events_resyncs_alone(
    redis: RedisProcess, process: FollowerProcess, writer: Writer, client: Redis
) -> None:
    async with FollowerProcess(redis.url).running() as second:
        await writer.write_services("a")
        for each in (process, second):
            await each.catch_up()
        await second.pause()
        redis.kill()
        await redis.restart()
        await writer.refresh()
        await writer.write_services("b", "c", "d")
        await process.catch_up()
        await client.xtrim(writer.store.keys.events, maxlen=1, approximate=False)

        second.start()
        await second.catch_up()

        assert second.replica.position == Position(writer.epoch, 4)
        assert (second.follower.resyncs, process.follower.resyncs) == (1, 0)
        assert len(process.replica.history.since(1) or ()) == 3


# Retries, with the clock, the sleep and the jitter of the test.


class OfflineFollower:
    """A follower whose store is unreachable, and whose time passes only while it sleeps."""

    def __init__(self, attempts: int) -> None:
        self.now, self.delays, self._attempts = 1000.0, list[float](), attempts
        self.follower = Follower(
            RedisStore("redis://127.0.0.1:1"),
            Replica(10),
            clock=system_clock,
            on_connection=self._on_connection,
            on_resync=lambda _: None,
            monotonic=lambda: self.now,
            sleep=self._sleep,
            jitter=lambda low, high: (low + high) / 2,
        )

    async def run(self) -> None:
        with pytest.raises(asyncio.CancelledError):
            await self.follower.run()

    async def _sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self.now += seconds
        if len(self.delays) == self._attempts:
            raise asyncio.CancelledError

    def _on_connection(self, *, connected: bool) -> None:
        assert not connected


async def test_retry_delay_doubles_up_to_one_second_with_jitter() -> None:
    offline = OfflineFollower(attempts=7)
    await offline.run()
    assert offline.delays == [0.75 * delay for delay in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0)]


async def test_lag_is_the_time_since_the_last_contact() -> None:
    offline = OfflineFollower(attempts=3)
    await offline.run()
    assert offline.follower.lag == pytest.approx(sum(offline.delays))
    offline.now += 7
    assert offline.follower.lag == pytest.approx(sum(offline.delays) + 7)
