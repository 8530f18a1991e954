import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.service_pb2 import Capability, Service, ServiceFilter
from tests.grpc.calls import (
    DEGRADED,
    HEALTH_CHANGED,
    HEALTHY,
    REGISTERED,
    SNAPSHOT,
    UNHEALTHY,
    UNKNOWN,
    UNMATCHED,
    UNREGISTERED,
    UNSPECIFIED,
    UPDATED,
    eventually,
    get,
    heartbeat,
    kind_and_name,
    open_watch,
    redis_client,
    register,
    register_all,
    report,
    unregister,
    update,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.support.server import Server, connected, running

SOON = Duration(nanos=100_000_000)
"""The minimum bookmark interval."""
GROUP_G = ServiceFilter(group="g")


def in_g(name: str, **fields: Any) -> Service:
    return small_service(name, group="g", **fields)


def large_service(name: str, **fields: Any) -> Service:
    """Return a service of about 40 KB."""
    described = [Capability(name=f"c{i}", description="d" * 4000) for i in range(10)]
    return small_service(name, capabilities=described, **fields)


def revisions(events: Iterable[Event]) -> list[int]:
    return [event.revision for event in events]


# Snapshots and cursors.


async def test_snapshot_is_followed_by_its_end_and_then_by_changes(server: Server) -> None:
    services = [await register(server, in_g(name)) for name in "cab"]
    await register(server, small_service("other"))
    async with watching(server, filter=GROUP_G, include_snapshot=True) as watch:
        snapshot = await watch.snapshot()
        changed = await register(server, in_g("b", version="2.0.0"))
        new = await register(server, in_g("d"))
        events = await watch.events(2)

    assert [event.service for event in snapshot] == sorted(services, key=lambda service: service.name)
    for event in snapshot:
        assert event.type == SNAPSHOT
        assert event.revision == event.service.revision
        assert event.occurred_at == event.service.updated_at
        assert event.reason == EventReason.EVENT_REASON_UNSPECIFIED
        assert event.previous_health == UNSPECIFIED
    assert [(event.type, event.service) for event in events] == [(UPDATED, changed), (REGISTERED, new)]
    assert [message.snapshot_complete for message in watch.messages].count(True) == 1


async def test_empty_snapshot_is_complete_immediately(server: Server) -> None:
    async with watching(server, include_snapshot=True) as watch:
        assert await watch.snapshot() == []
        assert len(watch.messages) == 1


async def test_watch_without_cursor_and_snapshot_starts_at_the_current_revision(server: Server) -> None:
    before = await register(server, small_service("before"))
    async with watching(server) as watch:
        assert watch.messages[0].revision == before.revision
        assert not watch.messages[0].snapshot_complete
        after = await register(server, small_service("after"))
        event = await watch.event()
    assert (event.type, event.service, event.revision) == (REGISTERED, after, after.revision)
    assert event.previous_health == UNSPECIFIED
    assert event.reason == EventReason.EVENT_REASON_CLIENT_REQUEST
    assert abs(event.occurred_at.ToMilliseconds() - after.updated_at.ToMilliseconds()) < 5_000


async def test_cursor_resumes_after_its_message(server: Server) -> None:
    for i in range(3):
        await register(server, small_service(f"before-{i}"))
    async with watching(server) as watch:
        await register(server, small_service("a"))
        await watch.event()
        await register(server, small_service("b"))
        await report(server, "a", HEALTHY)
        await unregister(server, "b")
        missed = await watch.events(3)

    async with watching(server, cursor=watch.messages[1].cursor) as again:
        assert await again.events(3) == missed
        await register(server, small_service("c"))
        assert kind_and_name(await again.event()) == ("REGISTERED", "c")


async def test_every_cursor_resumes_with_exactly_the_later_events(server: Server) -> None:
    async with watching(server) as watch:
        for i in range(20):
            await register(server, small_service(f"s{i % 4}", version=f"{i}.0.0"))
            if i % 3 == 0:
                await unregister(server, f"s{i % 4}")
        health = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        events = await watch.until(health.revision)
    assert revisions(events) == list(range(1, health.revision + 1))

    for message in watch.messages:
        async with watching(server, cursor=message.cursor) as again:
            missed = await again.until(health.revision)
        assert missed == [event for event in events if event.revision > message.revision]
        assert again.cursor == watch.cursor


async def test_resumed_watch_without_missed_events_sends_a_message_immediately(server: Server) -> None:
    await register(server, small_service("a"))
    async with watching(server) as watch:
        pass
    async with watching(server, cursor=watch.cursor) as again:
        message = await again.message()
        assert (list(message.events), message.cursor) == ([], watch.cursor)
        await register(server, small_service("b"))
        assert kind_and_name(await again.event()) == ("REGISTERED", "b")


async def test_watch_with_a_cursor_has_no_snapshot(server: Server) -> None:
    await register(server, small_service("a"))
    async with watching(server, include_snapshot=True) as watch:
        await watch.snapshot()
    await register(server, small_service("b"))
    async with watching(server, include_snapshot=True, cursor=watch.cursor) as again:
        assert kind_and_name(await again.event()) == ("REGISTERED", "b")
    assert not any(message.snapshot_complete for message in again.messages)


async def test_cursor_is_valid_on_every_server_and_after_a_restart(redis: RedisProcess) -> None:
    async with running(redis.url) as first, watching(first, filter=GROUP_G) as watch:
        await register_all(first, [in_g("a"), in_g("b"), in_g("c"), small_service("other")])
        await update(first, Service(name="b", group="h"))
        await unregister(first, "c")
        last = await register(first, in_g("d"))
        events = await watch.events(6)
        async with running(redis.url) as second, watching(second, filter=GROUP_G, cursor=watch.messages[0].cursor) as w:
            assert await w.until(last.revision) == events
    async with running(redis.url) as third, watching(third, filter=GROUP_G, cursor=watch.messages[0].cursor) as again:
        assert await again.until(last.revision) == events
        await register(third, in_g("e"))
        assert kind_and_name(await again.event()) == ("REGISTERED", "e")
    assert [kind_and_name(event) for event in events] == [
        ("REGISTERED", "a"),
        ("REGISTERED", "b"),
        ("REGISTERED", "c"),
        ("UNMATCHED", "b"),
        ("UNREGISTERED", "c"),
        ("REGISTERED", "d"),
    ]


async def change_some(server: Server) -> None:
    for i in range(60):
        await register(server, large_service(f"s{i % 7:02}", version=f"{i}.0.0"))
        await (unregister(server, f"s{i % 7:02}") if i % 3 else register(server, large_service(f"t{i:02}")))


def apply(events: Iterable[Event], services: dict[str, Service]) -> None:
    for event in events:
        if event.type == UNREGISTERED:
            del services[event.service.name]
        else:
            services[event.service.name] = event.service


async def test_snapshot_and_later_changes_yield_the_state_during_writes(server: Server) -> None:
    registered = await register_all(server, (large_service(f"s{i:02}") for i in range(40)))
    state = {service.name: service for service in registered}
    snapshots: dict[int, dict[str, Service]] = {}
    async with watching(server) as throughout:
        writing = asyncio.create_task(change_some(server))
        while not writing.done():
            async with watching(server, include_snapshot=True) as watch:
                services = {event.service.name: event.service for event in await watch.snapshot()}
                assert len(watch.messages) > 3, "the snapshot must consist of several messages"
                health = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
                apply(await watch.until(health.revision), services)
                snapshots[watch.messages[-1].revision] = services
        await writing
        last = await register(server, small_service("last"))
        events = await throughout.until(last.revision)

    compared = 0
    for event in events:
        apply([event], state)
        if event.revision in snapshots:
            assert snapshots[event.revision] == state
            compared += 1
    assert compared, "no snapshot was taken during the writes"


# Events.


async def test_events_have_state_reason_and_previous_status(server: Server) -> None:
    async with watching(server) as watch:
        first = await register(server, example_service())
        name = first.name
        second = await update(server, Service(name=name, version="3.0.0"))
        await report(server, name, DEGRADED)
        third = await get(server, name)
        await unregister(server, name)
        events = await watch.events(4)

    client, reported = EventReason.EVENT_REASON_CLIENT_REQUEST, EventReason.EVENT_REASON_HEALTH_REPORT
    assert [(e.type, e.service, e.previous_health, e.reason, e.revision) for e in events] == [
        (REGISTERED, first, UNSPECIFIED, client, 1),
        (UPDATED, second, UNKNOWN, client, 2),
        (HEALTH_CHANGED, third, UNKNOWN, reported, 3),
        (UNREGISTERED, third, DEGRADED, client, 4),
    ]
    assert not any(event.error for event in events)
    times = [event.occurred_at.ToNanoseconds() for event in events]
    assert times == sorted(times)


async def test_service_that_no_longer_matches_emits_one_unmatched_event(server: Server) -> None:
    before = await register(server, in_g("a"))
    async with watching(server, filter=GROUP_G) as watch:
        after = await update(server, Service(name="a", group="h"))
        event = await watch.event()
        assert (event.type, event.service, event.revision) == (UNMATCHED, after, after.revision)
        assert event.previous_health == before.health.status
        assert event.reason == EventReason.EVENT_REASON_CLIENT_REQUEST

        await update(server, Service(name="a", version="2.0.0"))
        await report(server, "a", HEALTHY)
        await unregister(server, "a")
        await register(server, in_g("b"))
        assert kind_and_name(await watch.event()) == ("REGISTERED", "b"), "services that do not match emit no events"


async def test_service_that_starts_to_match_emits_its_change(server: Server) -> None:
    await register(server, small_service("a"))
    async with watching(server, filter=GROUP_G) as watch:
        await report(server, "a", HEALTHY)
        matching = await update(server, in_g("a"), "group")
        event = await watch.event()
        assert (event.type, event.service, event.previous_health) == (UPDATED, matching, HEALTHY)
        last = await unregister(server, "a")
        event = await watch.event()
        assert (event.type, event.service) == (UNREGISTERED, last)


async def test_watch_with_a_health_filter_follows_status_changes(server: Server) -> None:
    await register(server, small_service("a"))
    async with watching(server, filter=ServiceFilter(health=[HEALTHY, DEGRADED])) as watch:
        for status in (UNHEALTHY, HEALTHY, DEGRADED, UNKNOWN, UNHEALTHY, DEGRADED):
            await report(server, "a", status)
        await unregister(server, "a")
        events = await watch.events(5)
    assert [(event.type, event.previous_health, event.service.health.status) for event in events] == [
        (HEALTH_CHANGED, UNHEALTHY, HEALTHY),
        (HEALTH_CHANGED, HEALTHY, DEGRADED),
        (UNMATCHED, DEGRADED, UNKNOWN),
        (HEALTH_CHANGED, UNHEALTHY, DEGRADED),
        (UNREGISTERED, DEGRADED, DEGRADED),
    ]


async def test_resumed_watch_reports_a_missed_unmatched_event(server: Server) -> None:
    await register(server, in_g("a"))
    async with watching(server, filter=GROUP_G) as watch:
        pass
    await update(server, Service(name="a", group="h"))
    await unregister(server, "a")
    last = await register(server, small_service("a", group="h"))
    async with watching(server, filter=GROUP_G, cursor=watch.cursor) as again:
        assert [kind_and_name(event) for event in await again.until(last.revision)] == [("UNMATCHED", "a")]


async def test_calls_without_effect_emit_no_event(server: Server) -> None:
    await register(server, in_g("a"))
    async with watching(server) as watch:
        await register(server, in_g("a"))
        await update(server, Service(name="a", group="g"))
        await report(server, "a", UNKNOWN)
        await heartbeat(server, "a")
        await server.stub.Cleanup(pb.CleanupRequest())
        await register(server, small_service("next"))
        assert kind_and_name(await watch.event()) == ("REGISTERED", "next")


TYPES: dict[str, tuple[list[EventType.ValueType], list[str]]] = {
    "all of them": ([], ["REGISTERED", "UPDATED", "HEALTH_CHANGED", "UNMATCHED", "UPDATED", "UNREGISTERED"]),
    "one": ([HEALTH_CHANGED], ["HEALTH_CHANGED"]),
    "two": ([UNREGISTERED, REGISTERED], ["REGISTERED", "UNREGISTERED"]),
    "services that no longer match": ([UNMATCHED], ["UNMATCHED"]),
    "a type without events": ([EventType.EVENT_TYPE_REGISTRY_ERROR], []),
    "snapshot events": ([SNAPSHOT], []),
}


@pytest.mark.parametrize("case", TYPES)
async def test_only_events_of_the_requested_types_are_sent(server: Server, case: str) -> None:
    types, expected = TYPES[case]
    await register(server, in_g("existing"))
    async with watching(server, filter=GROUP_G, types=types, include_snapshot=True, bookmark_interval=SOON) as watch:
        assert [kind_and_name(event) for event in await watch.snapshot()] == [("SNAPSHOT", "existing")], (
            "types do not filter snapshots"
        )
        cursor = watch.cursor
        await register(server, in_g("a"))
        await update(server, Service(name="a", version="2.0.0"))
        await report(server, "a", HEALTHY)
        await update(server, Service(name="a", group="h"))
        await update(server, Service(name="a", group="g"))
        await unregister(server, "a")
        health = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        live = await watch.until(health.revision)
    async with watching(server, filter=GROUP_G, types=types, cursor=cursor) as again:
        assert await again.until(health.revision) == live
    assert [kind_and_name(event) for event in live] == [(kind, "a") for kind in expected]


async def test_each_watcher_receives_the_events_of_its_filter(server: Server) -> None:
    async with AsyncExitStack() as stack:
        watches = {
            name: await stack.enter_async_context(watching(server, filter=ServiceFilter(name_pattern=f"^{name}")))
            for name in ("a", "b", "ab", "")
        }
        for name in ("a1", "ab1", "b1", "c1"):
            await register(server, small_service(name))
        seen = {
            name: [event.service.name for event in await watch.events(count)]
            for (name, watch), count in zip(watches.items(), (2, 1, 1, 4), strict=True)
        }
    assert seen == {"a": ["a1", "ab1"], "b": ["b1"], "ab": ["ab1"], "": ["a1", "ab1", "b1", "c1"]}


async def test_many_watchers_receive_every_change_once_in_order(server: Server) -> None:
    async with AsyncExitStack() as stack:
        watches = [await stack.enter_async_context(watching(server)) for _ in range(50)]
        assert server.parts.hub.watchers == 50
        await asyncio.gather(*(register(server, small_service(f"s{i}")) for i in range(50)))
        received = [await watch.events(50) for watch in watches]
    assert revisions(received[0]) == list(range(1, 51))
    assert all(events == received[0] for events in received)


async def test_pending_events_are_sent_in_one_message(server: Server) -> None:
    async with watching(server) as watch:
        await register_all(server, (small_service(f"s{i:03}") for i in range(500)))
        events = await watch.events(500)
    assert revisions(events) == list(range(1, 501))
    assert len(watch.messages) < 250
    for message in watch.messages[1:]:
        assert message.revision >= message.events[-1].revision


# Bookmarks.


async def test_idle_streams_receive_bookmarks(server: Server) -> None:
    service = await register(server, small_service("a"))
    async with watching(server, bookmark_interval=SOON) as watch:
        loop = asyncio.get_running_loop()
        started = loop.time()
        for _ in range(3):
            message = await watch.message()
            assert (list(message.events), message.revision) == ([], service.revision)
            assert not message.snapshot_complete
        assert loop.time() - started > 0.25, "bookmarks must not be more frequent than requested"


async def test_bookmarks_advance_the_cursor_past_events_that_do_not_match(redis: RedisProcess) -> None:
    async with running(redis.url, redis={"events_max_length": 100}, watch={"history_seconds": 0}) as server:
        async with watching(server, filter=GROUP_G, bookmark_interval=SOON) as watch:
            initial_cursor = watch.cursor
            for i in range(150):
                await register(server, small_service("other", version=f"{i}.0.0"))
            last = await get(server, "other")
            assert await watch.until(last.revision) == []
            assert watch.messages[-1].revision == last.revision
        await register(server, in_g("a"))

        async with watching(server, filter=GROUP_G, cursor=watch.cursor) as again:
            assert kind_and_name(await again.event()) == ("REGISTERED", "a")
        async with watching(server, filter=GROUP_G, cursor=initial_cursor) as expired:
            assert (await expired.failure()).reason == "CURSOR_EXPIRED"


@pytest.mark.parametrize("interval", [timedelta(milliseconds=100), timedelta(seconds=30), timedelta(hours=1)])
async def test_bookmark_intervals_within_the_limits_are_accepted(server: Server, interval: timedelta) -> None:
    async with watching(server, bookmark_interval=interval) as watch:
        assert watch.cursor


# Refusals.


async def refused(server: Server, **fields: Any) -> Any:
    async with open_watch(server.stub, **fields) as watch:
        return await watch.failure()


async def test_bad_fields_are_reported(server: Server) -> None:
    for fields, bad in (
        ({"cursor": "nonsense"}, ["cursor"]),
        ({"cursor": "?" * 5000}, ["cursor"]),
        ({"cursor": "é"}, ["cursor"]),
        ({"types": [UPDATED, 0, 99]}, ["types[1]", "types[2]"]),
        ({"bookmark_interval": timedelta(milliseconds=99)}, ["bookmark_interval"]),
        ({"bookmark_interval": timedelta(0)}, ["bookmark_interval"]),
        ({"bookmark_interval": timedelta(hours=1, milliseconds=1)}, ["bookmark_interval"]),
        ({"bookmark_interval": Duration(seconds=1, nanos=-1)}, ["bookmark_interval"]),
        ({"filter": ServiceFilter(name_pattern="("), "cursor": "?", "types": [0]}, ["filter.name_pattern", "types[0]"]),
    ):
        error = await refused(server, **fields)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
        assert set(bad) <= set(error.fields), fields
    assert server.parts.hub.watchers == 0


async def test_cursor_within_a_snapshot_is_expired(server: Server) -> None:
    await register_all(server, (large_service(f"s{i:02}") for i in range(20)))
    async with watching(server, include_snapshot=True) as watch:
        events = await watch.snapshot()
    assert len(events) == 20
    assert len(watch.messages) > 3, "the snapshot must consist of several messages"
    for message in watch.messages[:-1]:
        error = await refused(server, cursor=message.cursor)
        assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")

    new = await register(server, small_service("new"))
    async with watching(server, cursor=watch.cursor) as again:
        assert (await again.event()).service == new


async def test_cursor_older_than_the_event_log_is_expired(redis: RedisProcess) -> None:
    async with running(redis.url, redis={"events_max_length": 100}, watch={"history_seconds": 0}) as server:
        async with watching(server) as watch:
            for i in range(300):
                last = await register(server, small_service("a", version=f"{i}.0.0"))
                await watch.until(last.revision)
        last = await get(server, "a")
        resumed = 0
        for message in watch.messages:
            async with open_watch(server.stub, cursor=message.cursor) as again:
                if last.revision - message.revision > 100:
                    error = await again.failure()
                    assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
                else:
                    missed = await again.until(last.revision)
                    assert revisions(missed) == list(range(message.revision + 1, last.revision + 1))
                    resumed += 1
        assert resumed == 101


async def test_cursor_of_another_epoch_is_expired(redis: RedisProcess) -> None:
    async with running(redis.url, redis={"repair": False}) as server:
        await register(server, small_service("a"))
        last = await register(server, small_service("b"))
        async with watching(server) as watch:
            cursor = watch.cursor
            async with redis_client(redis) as client:
                await client.flushall()
            events = await watch.events(2)
            assert len(watch.messages) == 2, "all events of one revision are in one message"
            assert {kind_and_name(event) for event in events} == {("UNREGISTERED", "a"), ("UNREGISTERED", "b")}
            assert {event.reason for event in events} == {EventReason.EVENT_REASON_RESYNC}

        error = await refused(server, cursor=cursor)
        assert (error.code, error.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
        await register(server, small_service("a"))
        new = await register(server, small_service("b"))
        assert new.revision == last.revision, "the new epoch must reach the same revision"
        assert (await refused(server, cursor=cursor)).reason == "CURSOR_EXPIRED"


# Slow and disconnected readers.


async def test_stalled_reader_is_disconnected_and_does_not_slow_others(redis: RedisProcess) -> None:
    async with (
        running(redis.url, watch={"buffer_events": 5, "buffer_bytes": 1 << 30}) as server,
        connected(server.grpc_address) as (_, stub),
        open_watch(stub) as slow,
        watching(server) as fast,
    ):
        assert not (await slow.message()).events
        seen: list[Event] = []
        while server.parts.hub.watchers == 2:
            # The windows and buffers of the connection hold about 5 MB.
            assert len(seen) < 600, "its buffer is bounded"
            await register(server, large_service(f"s{len(seen)}"))
            seen += await fast.events()
        assert revisions(seen) == list(range(1, len(seen) + 1)), "another reader receives every change immediately"

        error = await slow.failure()
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WATCHER_TOO_SLOW")
        received = [event for message in slow.messages for event in message.events]
        async with watching(server, cursor=slow.cursor) as again:
            missed = await again.until(len(seen))
    assert len(missed) >= 6
    assert received + missed == seen, "no event is lost or repeated"


async def test_reader_whose_buffer_holds_all_pending_events_stays_connected(redis: RedisProcess) -> None:
    async with running(redis.url, watch={"buffer_events": 200}) as server, watching(server) as watch:
        await register_all(server, (small_service(f"s{i:03}") for i in range(200)))
        assert revisions(await watch.events(200)) == list(range(1, 201))


async def test_watch_ends_when_its_buffer_exceeds_the_byte_limit(redis: RedisProcess) -> None:
    async with (
        running(redis.url, watch={"buffer_bytes": 1 << 17, "buffer_events": 1_000_000}) as server,
        connected(server.grpc_address) as (_, stub),
        open_watch(stub) as slow,
    ):
        assert not (await slow.message()).events
        written = 0
        while server.parts.hub.watchers:
            written += 1
            assert written < 600, "its buffer is bounded"
            await register(server, large_service(f"s{written}"))
        assert (await slow.failure()).reason == "WATCHER_TOO_SLOW"


async def _no_watchers(server: Server) -> bool:
    return server.parts.hub.watchers == 0


async def test_cancelled_watch_is_removed(server: Server) -> None:
    async with watching(server), watching(server, filter=GROUP_G), watching(server, include_snapshot=True) as third:
        await third.snapshot()
        assert server.parts.hub.watchers == 3
    await eventually(lambda: _no_watchers(server), "the watch is removed")
    await register(server, small_service("a"))


async def test_watch_of_a_disconnected_client_is_removed(server: Server) -> None:
    async with connected(server.grpc_address) as (channel, stub):
        call = stub.WatchEvents(pb.WatchEventsRequest())
        assert isinstance(await call.read(), pb.WatchEventsResponse)
        assert server.parts.hub.watchers == 1
        await channel.close()
    await eventually(lambda: _no_watchers(server), "the watch is removed")


async def test_watch_ends_with_its_deadline_and_is_removed(server: Server) -> None:
    call = server.stub.WatchEvents(pb.WatchEventsRequest(), timeout=0.3)
    assert isinstance(await call.read(), pb.WatchEventsResponse)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: _no_watchers(server), "the watch is removed")


async def test_watch_of_a_draining_server_ends_with_a_valid_cursor(redis: RedisProcess) -> None:
    async with AsyncExitStack() as outer:
        async with running(redis.url) as server:
            _, stub = await outer.enter_async_context(connected(server.grpc_address))
            watch = await outer.enter_async_context(open_watch(stub))
            assert not (await watch.message()).events
            await register_all(server, (small_service(f"s{i}") for i in range(20)))
        error = await watch.failure()
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    received = [event for message in watch.messages for event in message.events]
    async with running(redis.url) as server:
        last = await register(server, small_service("last"))
        async with watching(server, cursor=watch.cursor) as again:
            missed = await again.until(last.revision)
    assert revisions(received + missed) == list(range(1, 22))
