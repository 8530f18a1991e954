"""``Watch``: resumption, cursors, snapshots and differences."""

import asyncio
from collections.abc import AsyncIterator, Iterable

import pytest
from redis.asyncio import Redis

from registry_client import (
    CursorExpired,
    Event,
    EventReason,
    EventType,
    InvalidRequest,
    RegistryClient,
    Service,
    Watch,
    difference,
    make_service,
)
from registry_client.testing import RegistryProcess
from tests.support.redis_process import RedisProcess
from tests.support.server import ServerProcess, running

REGISTERED = EventType.EVENT_TYPE_SERVICE_REGISTERED
UPDATED = EventType.EVENT_TYPE_SERVICE_UPDATED
UNREGISTERED = EventType.EVENT_TYPE_SERVICE_UNREGISTERED
HEALTH_CHANGED = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
SNAPSHOT = EventType.EVENT_TYPE_SERVICE_SNAPSHOT
RESYNC = EventReason.EVENT_REASON_RESYNC


def agent(name: str, version: str = "1.0.0", **fields: str) -> Service:
    return make_service(name, f"http://{name}.test", version=version, capabilities=["x"], **fields)  # type: ignore[arg-type]


async def next_changes(watch: Watch, count: int) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(60):
        while len(events) < count:
            events.append(await anext(watch))
    return events


async def wait_started(watch: Watch) -> None:
    """Wait until the watch returns all subsequent changes."""
    async with asyncio.timeout(60):
        while not watch.complete:
            assert await watch.next_events() == []


def types_and_names(events: Iterable[Event]) -> list[tuple[EventType.ValueType, str]]:
    return [(event.type, event.service.name) for event in events]


async def test_snapshot_is_followed_by_every_change(client: RegistryClient) -> None:
    await client.register_service(agent("old"))
    async with client.watch(include_snapshot=True) as watch:
        assert types_and_names(await next_changes(watch, 1)) == [(SNAPSHOT, "old")]
        assert watch.complete
        assert watch.connected
        await client.register_service(agent("new"))
        await client.register_service(agent("new", version="2.0.0"))
        await client.unregister_service("old")
        assert types_and_names(await next_changes(watch, 3)) == [
            (REGISTERED, "new"),
            (UPDATED, "new"),
            (UNREGISTERED, "old"),
        ]
        assert {name: each.version for name, each in watch.services.items()} == {"new": "2.0.0"}


async def test_watch_without_snapshot_returns_only_changes(client: RegistryClient) -> None:
    await client.register_service(agent("old"))
    async with client.watch() as watch:
        await wait_started(watch)
        await client.register_service(agent("new"))
        assert types_and_names(await next_changes(watch, 1)) == [(REGISTERED, "new")]


async def test_watch_returns_only_matching_events(client: RegistryClient) -> None:
    async with client.watch(capability="x", environment="production", types=["service_registered"]) as watch:
        await wait_started(watch)
        await client.register_service(agent("other", environment="test"))
        await client.register_service(agent("one", environment="production"))
        await client.unregister_service("one")
        await client.register_service(agent("two", environment="production"))
        assert types_and_names(await next_changes(watch, 2)) == [(REGISTERED, "one"), (REGISTERED, "two")]


async def test_watch_resumes_after_the_registry_was_killed(registry: RegistryProcess, client: RegistryClient) -> None:
    async with client.watch(include_snapshot=True) as watch:
        await wait_started(watch)
        await client.register_service(agent("before"))
        assert types_and_names(await next_changes(watch, 1)) == [(REGISTERED, "before")]
        registry.kill()
        following = asyncio.create_task(next_changes(watch, 2))
        await asyncio.to_thread(registry.start)
        await client.register_service(agent("after-1"))
        await client.register_service(agent("after-2"))
        assert types_and_names(await following) == [(REGISTERED, "after-1"), (REGISTERED, "after-2")]


async def test_cursor_resumes_right_after_the_last_handled_event(client: RegistryClient) -> None:
    async with client.watch() as watch:
        await wait_started(watch)
        for name in ("one", "two", "three"):
            await client.register_service(agent(name))
        first = await next_changes(watch, 1)
        assert types_and_names(first) == [(REGISTERED, "one")]
        reading = asyncio.create_task(anext(watch))
        assert (await reading).service.name == "two"  # requesting the next event marks `one` as handled
        cursor = watch.cursor
    async with client.watch(cursor=cursor) as again:
        names = [event.service.name for event in await next_changes(again, 2)]
        assert names[-1] == "three" or (await next_changes(again, 1))[0].service.name == "three"
        assert not again.complete


async def test_next_cursor_is_after_all_returned_events(client: RegistryClient) -> None:
    for name in ("one", "two", "three"):
        await client.register_service(agent(name))
    async with client.watch(include_snapshot=True) as watch:
        # A watch cannot resume within a snapshot.
        assert [bool((await next_changes(watch, 1)) and watch.next_cursor) for _ in range(3)] == [False, False, True]
        cursor = watch.next_cursor
        assert watch.cursor == ""  # the last event of the snapshot may not have been handled yet
    await client.unregister_service("two")
    async with client.watch(cursor=cursor) as again:
        assert types_and_names(await next_changes(again, 1)) == [(UNREGISTERED, "two")]


async def test_cancelled_wait_loses_no_events(client: RegistryClient) -> None:
    async with client.watch() as watch:
        await wait_started(watch)
        for i in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await anext(watch)
            await client.register_service(agent(f"agent-{i}"))
            assert types_and_names(await next_changes(watch, 1)) == [(REGISTERED, f"agent-{i}")]


async def test_invalid_filter_and_cursor_raise(client: RegistryClient) -> None:
    for watch in (client.watch(name_pattern="("), client.watch(cursor="nonsense")):
        with pytest.raises(InvalidRequest):
            await anext(watch)


async def test_closed_watch_stops_iterating(client: RegistryClient) -> None:
    async with client.watch() as watch:
        await wait_started(watch)
        reading = asyncio.create_task(collect(watch))
        await asyncio.sleep(0)
        await watch.close()
        assert await reading == []


async def collect(watch: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in watch]


@pytest.fixture
async def short_history_server(redis: RedisProcess) -> AsyncIterator[ServerProcess]:
    async with ServerProcess(
        f"--redis.url={redis.url}", "--redis.events-max-length=100", "--watch.history-seconds=0", "--redis.repair=false"
    ) as process:
        yield process


async def test_expired_cursor_becomes_a_difference(short_history_server: ServerProcess) -> None:
    async with RegistryClient(short_history_server.grpc_address, timeout=30) as client:
        for name in ("kept", "changed", "reported", "gone"):
            await client.register_service(agent(name))
        async with client.watch() as watch:
            await wait_started(watch)
            watch._cancel_stream()  # simulates a broken connection
            await client.register_service(agent("changed", version="2.0.0"))
            await client.report_service_health("reported", "unhealthy")
            await client.unregister_service("gone")
            await client.register_service(agent("new"))
            for i in range(1_000):
                await client.register_service(agent("kept", version=f"1.0.{i % 2}"))
            await client.register_service(agent("kept"))
            events = await next_changes(watch, 5)
            assert sorted(types_and_names(events)) == sorted(
                [
                    (UNREGISTERED, "gone"),
                    (UPDATED, "changed"),
                    (HEALTH_CHANGED, "reported"),
                    (REGISTERED, "new"),
                    (UPDATED, "kept"),
                ]
            )
            assert {event.reason for event in events} == {RESYNC}
            assert dict(watch.services) == {each.name: each for each in await client.find_services()}


async def test_expired_cursor_of_the_caller_raises(short_history_server: ServerProcess) -> None:
    async with RegistryClient(short_history_server.grpc_address, timeout=30) as client:
        async with client.watch() as watch:
            await wait_started(watch)
            cursor = watch.next_cursor
        for i in range(300):
            await client.register_service(agent("busy", version=f"1.0.{i}"))
        with pytest.raises(CursorExpired):
            await anext(client.watch(cursor=cursor))


async def test_flushed_store_becomes_a_difference(redis: RedisProcess, short_history_server: ServerProcess) -> None:
    async with RegistryClient(short_history_server.grpc_address, timeout=30) as client:
        await client.register_service(agent("one"))
        async with client.watch(include_snapshot=True) as watch:
            await next_changes(watch, 1)
            async with Redis.from_url(redis.url) as admin:
                await admin.flushall()
            (event,) = await next_changes(watch, 1)
            assert (event.type, event.reason) == (UNREGISTERED, RESYNC)
            assert dict(watch.services) == {}


def test_difference_contains_each_kind_of_change() -> None:
    def with_status(name: str, version: str = "1.0.0", status: int = 1) -> Service:
        service = agent(name, version)
        service.health.status = status  # type: ignore[assignment]
        return service

    before = {
        each.name: each for each in (with_status("same"), with_status("gone"), with_status("ill"), with_status("both"))
    }
    after = {
        each.name: each
        for each in (
            with_status("same"),
            with_status("ill", status=2),
            with_status("both", "2.0.0", 2),
            with_status("new"),
        )
    }
    events = difference.diff_events(before, after, 7)
    assert types_and_names(events) == [
        (UNREGISTERED, "gone"),
        (HEALTH_CHANGED, "ill"),
        (UPDATED, "both"),
        (REGISTERED, "new"),
    ]
    assert [event.previous_health for event in events] == [1, 1, 1, 0]
    assert {event.revision for event in events} == {7}


async def test_slow_reader_misses_no_events(redis: RedisProcess) -> None:
    large = {f"label-{i}": "x" * 256 for i in range(60)}
    async with (
        running(redis.url, watch={"buffer_events": 5}, redis={"events_max_length": 10_000}) as server,
        RegistryClient(server.grpc_address, timeout=30) as client,
        client.watch() as watch,
    ):
        await wait_started(watch)
        written = 0
        while server.parts.hub.watchers:
            assert written < 2_000, "the watcher was never disconnected: flow control did not take effect"
            await client.register_service(
                make_service("busy", "http://busy.test", version=f"1.0.{written}", labels=large)
            )
            written += 1
        assert written > 5
        events = await next_changes(watch, written)
        assert [event.service.version for event in events] == [f"1.0.{i}" for i in range(written)]
        assert {event.reason for event in events} == {EventReason.EVENT_REASON_CLIENT_REQUEST}
