"""Watches that resume by themselves."""

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


async def take(watch: Watch, count: int) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(60):
        while len(events) < count:
            events.append(await anext(watch))
    return events


async def begun(watch: Watch) -> None:
    """Waits until changes from now on are given."""
    async with asyncio.timeout(60):
        while not watch.complete:
            assert await watch.next_events() == []


def told(events: Iterable[Event]) -> list[tuple[EventType.ValueType, str]]:
    return [(event.type, event.service.name) for event in events]


async def test_first_the_snapshot_then_every_change(client: RegistryClient) -> None:
    await client.register_service(agent("old"))
    async with client.watch(include_snapshot=True) as watch:
        assert told(await take(watch, 1)) == [(SNAPSHOT, "old")]
        assert watch.complete
        assert watch.connected
        await client.register_service(agent("new"))
        await client.register_service(agent("new", version="2.0.0"))
        await client.unregister_service("old")
        assert told(await take(watch, 3)) == [(REGISTERED, "new"), (UPDATED, "new"), (UNREGISTERED, "old")]
        assert {name: each.version for name, each in watch.services.items()} == {"new": "2.0.0"}


async def test_without_a_snapshot_only_changes_come(client: RegistryClient) -> None:
    await client.register_service(agent("old"))
    async with client.watch() as watch:
        await begun(watch)
        await client.register_service(agent("new"))
        assert told(await take(watch, 1)) == [(REGISTERED, "new")]


async def test_only_what_matches_comes(client: RegistryClient) -> None:
    async with client.watch(capability="x", environment="production", types=["service_registered"]) as watch:
        await begun(watch)
        await client.register_service(agent("other", environment="test"))
        await client.register_service(agent("one", environment="production"))
        await client.unregister_service("one")
        await client.register_service(agent("two", environment="production"))
        assert told(await take(watch, 2)) == [(REGISTERED, "one"), (REGISTERED, "two")]


async def test_it_goes_on_after_the_registry_was_killed(registry: RegistryProcess, client: RegistryClient) -> None:
    async with client.watch(include_snapshot=True) as watch:
        await begun(watch)
        await client.register_service(agent("before"))
        assert told(await take(watch, 1)) == [(REGISTERED, "before")]
        registry.kill()
        following = asyncio.create_task(take(watch, 2))
        await asyncio.to_thread(registry.start)
        await client.register_service(agent("after-1"))
        await client.register_service(agent("after-2"))
        assert told(await following) == [(REGISTERED, "after-1"), (REGISTERED, "after-2")]


async def test_a_cursor_goes_on_right_after_what_was_handled(client: RegistryClient) -> None:
    async with client.watch() as watch:
        await begun(watch)
        for name in ("one", "two", "three"):
            await client.register_service(agent(name))
        first = await take(watch, 1)
        assert told(first) == [(REGISTERED, "one")]
        reading = asyncio.create_task(anext(watch))
        assert (await reading).service.name == "two"  # it was asked for, so `one` is handled
        cursor = watch.cursor
    async with client.watch(cursor=cursor) as again:
        names = [event.service.name for event in await take(again, 2)]
        assert names[-1] == "three" or (await take(again, 1))[0].service.name == "three"
        assert not again.complete


async def test_the_next_cursor_stands_after_all_that_was_given(client: RegistryClient) -> None:
    for name in ("one", "two", "three"):
        await client.register_service(agent(name))
    async with client.watch(include_snapshot=True) as watch:
        # A snapshot is one step: there is no going on within it.
        assert [bool((await take(watch, 1)) and watch.next_cursor) for _ in range(3)] == [False, False, True]
        cursor = watch.next_cursor
        assert watch.cursor == ""  # the last event of it may not have been handled yet
    await client.unregister_service("two")
    async with client.watch(cursor=cursor) as again:
        assert told(await take(again, 1)) == [(UNREGISTERED, "two")]


async def test_giving_up_waiting_loses_nothing(client: RegistryClient) -> None:
    async with client.watch() as watch:
        await begun(watch)
        for i in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await anext(watch)
            await client.register_service(agent(f"agent-{i}"))
            assert told(await take(watch, 1)) == [(REGISTERED, f"agent-{i}")]


async def test_a_bad_filter_and_a_bad_cursor_are_told(client: RegistryClient) -> None:
    for watch in (client.watch(name_pattern="("), client.watch(cursor="nonsense")):
        with pytest.raises(InvalidRequest):
            await anext(watch)


async def test_a_closed_watch_ends(client: RegistryClient) -> None:
    async with client.watch() as watch:
        await begun(watch)
        reading = asyncio.create_task(collect(watch))
        await asyncio.sleep(0)
        await watch.close()
        assert await reading == []


async def collect(watch: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in watch]


@pytest.fixture
async def own(redis: RedisProcess) -> AsyncIterator[ServerProcess]:
    async with ServerProcess(
        f"--redis.url={redis.url}", "--redis.events-max-length=100", "--redis.repair=false"
    ) as process:
        yield process


async def test_an_expired_cursor_becomes_the_difference(own: ServerProcess) -> None:
    async with RegistryClient(own.grpc_address, timeout=30) as client:
        for name in ("kept", "changed", "reported", "gone"):
            await client.register_service(agent(name))
        async with client.watch() as watch:
            await begun(watch)
            watch._hang_up()  # a break of the connection
            await client.register_service(agent("changed", version="2.0.0"))
            await client.report_service_health("reported", "unhealthy")
            await client.unregister_service("gone")
            await client.register_service(agent("new"))
            for i in range(1_000):
                await client.register_service(agent("kept", version=f"1.0.{i % 2}"))
            await client.register_service(agent("kept"))
            events = await take(watch, 5)
            assert sorted(told(events)) == sorted(
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


async def test_without_anything_to_compare_with_an_expired_cursor_is_told(own: ServerProcess) -> None:
    async with RegistryClient(own.grpc_address, timeout=30) as client:
        async with client.watch() as watch:
            await begun(watch)
            cursor = watch.next_cursor
        for i in range(300):
            await client.register_service(agent("busy", version=f"1.0.{i}"))
        with pytest.raises(CursorExpired):
            await anext(client.watch(cursor=cursor))


async def test_an_emptied_store_is_told_as_its_difference(redis: RedisProcess, own: ServerProcess) -> None:
    async with RegistryClient(own.grpc_address, timeout=30) as client:
        await client.register_service(agent("one"))
        async with client.watch(include_snapshot=True) as watch:
            await take(watch, 1)
            async with Redis.from_url(redis.url) as admin:
                await admin.flushall()
            (event,) = await take(watch, 1)
            assert (event.type, event.reason) == (UNREGISTERED, RESYNC)
            assert dict(watch.services) == {}


def test_a_difference_of_states_has_each_kind_of_change() -> None:
    def healthy(name: str, version: str = "1.0.0", status: int = 1) -> Service:
        service = agent(name, version)
        service.health.status = status  # type: ignore[assignment]
        return service

    before = {each.name: each for each in (healthy("same"), healthy("gone"), healthy("ill"), healthy("both"))}
    after = {
        each.name: each
        for each in (healthy("same"), healthy("ill", status=2), healthy("both", "2.0.0", 2), healthy("new"))
    }
    events = difference.between(before, after, 7)
    assert told(events) == [(UNREGISTERED, "gone"), (HEALTH_CHANGED, "ill"), (UPDATED, "both"), (REGISTERED, "new")]
    assert [event.previous_health for event in events] == [1, 1, 1, 0]
    assert {event.revision for event in events} == {7}


async def test_a_slow_reader_misses_nothing(redis: RedisProcess) -> None:
    large = {f"label-{i}": "x" * 256 for i in range(60)}
    async with (
        running(redis.url, watch={"buffer_events": 5}, redis={"events_max_length": 10_000}) as server,
        RegistryClient(server.grpc_address, timeout=30) as client,
        client.watch() as watch,
    ):
        await begun(watch)
        written = 0
        while server.parts.hub.watchers:
            assert written < 2_000, "the windows and buffers of a connection are bounded"
            await client.register_service(
                make_service("busy", "http://busy.test", version=f"1.0.{written}", labels=large)
            )
            written += 1
        assert written > 5
        events = await take(watch, written)
        assert [event.service.version for event in events] == [f"1.0.{i}" for i in range(written)]
        assert {event.reason for event in events} == {EventReason.EVENT_REASON_CLIENT_REQUEST}
