import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health, ServiceFilter
from tests.grpc.calls import (
    DEGRADED,
    TIMEOUT,
    UNREGISTERED,
    eventually,
    failure,
    find_names,
    get,
    health_of,
    heartbeat,
    kind_and_name,
    redis_client,
    register,
    register_all,
    set_remaining_lease,
    unregister,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.support.server import Server, running

ONE_SWEEP = {"sweep_interval_ms": 24 * 60 * 60 * 1000}
"""The sweeper runs once at the start and not again during a test."""
FIVE_SECONDS = Duration(seconds=5)
PERMANENT = Duration()


async def lease_ends(server: Server, name: str) -> float:
    """Return the end of a lease in seconds since the epoch."""
    return (await health_of(server, name)).lease_expires_at.ToMilliseconds() / 1000


async def document_ends_at(client: Redis, name: str, end: float) -> bool:
    """Return whether the document expires at ``end``. (PEXPIRETIME requires Redis 7.)"""
    before = await client.time()
    remaining = await client.pttl(f"ossa:services:{name}") / 1000
    after = await client.time()
    return bool(before[0] + before[1] / 1e6 + remaining - 0.002 <= end <= after[0] + after[1] / 1e6 + remaining + 0.002)


async def cleanup(server: Server) -> list[str]:
    answer = await server.stub.Cleanup(pb.CleanupRequest())
    assert answer.services_removed == len(answer.names)
    return list(answer.names)


@asynccontextmanager
async def run_without_sweeps(redis: RedisProcess) -> AsyncIterator[tuple[Server, Redis]]:
    """Run a server whose sweeper removes no lease during a test; yield it with a client of its store."""
    async with running(redis.url, lease=ONE_SWEEP) as server, redis_client(redis) as client:
        # Wait for the only sweep, so that it cannot remove leases that a test lets expire.
        async def is_swept() -> bool:
            return bool(await client.exists("ossa:registry:sweep"))

        await eventually(is_swept, "the sweeper has run")
        yield server, client


# Heartbeat.


async def test_heartbeats_renew_leases_for_their_full_length(server: Server, redis: RedisProcess) -> None:
    await register_all(server, [small_service("a"), small_service("b", ttl=Duration(seconds=60)), small_service("c")])
    async with redis_client(redis) as client:
        for name in ("a", "b", "c"):
            await set_remaining_lease(client, name, 10)
        untouched = await lease_ends(server, "c")
        assert await heartbeat(server, "a", "b") == pb.HeartbeatResponse(renewed_count=2)

        now = (await client.time())[0]
        assert 290 < await lease_ends(server, "a") - now <= 301
        assert 50 < await lease_ends(server, "b") - now <= 61
        assert await lease_ends(server, "c") == untouched
        assert 290 < await client.ttl("ossa:services:a") <= 300
        assert 50 < await client.ttl("ossa:services:b") <= 60
        assert await client.ttl("ossa:services:c") <= 10


async def test_unknown_names_are_returned_in_order_and_others_are_renewed(server: Server) -> None:
    await register_all(server, [small_service("a"), small_service("b"), small_service("c", ttl=PERMANENT)])
    answer = await heartbeat(server, "z", "a", "y", "b", "x", "c")
    assert answer.renewed_count == 3, "permanent services are counted as renewed"
    assert list(answer.unknown_names) == ["z", "y", "x"]


async def test_repeated_name_counts_once(server: Server) -> None:
    await register(server, small_service("a"))
    answer = await heartbeat(server, "a", "z", "a", "y", "z", "a")
    assert answer.renewed_count == 1
    assert list(answer.unknown_names) == ["z", "y"]


async def test_heartbeats_emit_no_event_and_change_no_service(server: Server) -> None:
    service = await register(server, small_service("a"))
    async with watching(server) as watch:
        await heartbeat(server, "a")
        await register(server, small_service("next"))
        assert kind_and_name(await watch.event()) == ("REGISTERED", "next")
    assert await get(server, "a") == service


async def test_heartbeat_accepts_10_000_names(server: Server) -> None:
    await register_all(server, (small_service(f"s{i:04}") for i in range(2_500)))
    names = [f"{kind}{i:04}" for i in range(2_500) for kind in "swxs"]
    answer = await heartbeat(server, *names)
    assert answer.renewed_count == 2_500
    assert list(answer.unknown_names) == [name for name in names if name[0] in "wx"]


async def test_heartbeats_with_no_too_many_or_invalid_names_are_refused(server: Server) -> None:
    for names, fields in (
        ([], ["names"]),
        (["a"] * 10_001, ["names"]),
        (["a", "", "-", "b"], ["names[1]", "names[2]"]),
    ):
        refused = await failure(heartbeat(server, *names))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


async def test_heartbeat_renews_an_expired_lease_that_is_not_swept_yet(redis: RedisProcess) -> None:
    async with run_without_sweeps(redis) as (server, client):
        service = await register(server, example_service())
        document = await client.get(f"ossa:services:{service.name}")
        await set_remaining_lease(client, service.name, -1)
        assert not await client.exists(f"ossa:services:{service.name}"), "the document expires in Redis"
        assert (await heartbeat(server, service.name)).renewed_count == 1

        assert await cleanup(server) == []
        assert await get(server, service.name) == service

        async def is_restored() -> bool:
            return bool(await client.get(f"ossa:services:{service.name}") == document)

        async with running(redis.url):  # sweeps every second
            await eventually(is_restored, "the next sweep restores the document")
        assert 290 < await client.ttl(f"ossa:services:{service.name}") <= 302


# Expiry.


@pytest.mark.slow
async def test_service_without_heartbeats_is_removed_when_its_lease_ends(server: Server, redis: RedisProcess) -> None:
    await register(server, small_service("remains"))
    last = await register(server, small_service("a", ttl=FIVE_SECONDS, health=Health(status=DEGRADED)))
    ends = await lease_ends(server, "a")
    async with watching(server) as watch, redis_client(redis) as client:
        assert await client.exists("ossa:services:a")
        event = await watch.event()

        assert (event.type, event.service, event.previous_health) == (UNREGISTERED, last, DEGRADED)
        assert event.reason == EventReason.EVENT_REASON_LEASE_EXPIRED
        assert event.revision == last.revision + 1
        assert ends <= event.occurred_at.ToMilliseconds() / 1000 < ends + 5
        assert 4.99 < ends - last.registered_at.ToMilliseconds() / 1000 < 10

        for call in (get(server, "a"), health_of(server, "a")):
            assert (await failure(call)).code is grpc.StatusCode.NOT_FOUND
        assert await find_names(server, ServiceFilter()) == ["remains"]
        assert list((await heartbeat(server, "a")).unknown_names) == ["a"]
        assert not await client.exists("ossa:services:a")
        assert not await client.hexists("ossa:registry:records", "a")
        assert await client.zscore("ossa:registry:leases", "a") is None

        await register(server, small_service("next"))
        assert kind_and_name(await watch.event()) == ("REGISTERED", "next"), "the removal is reported once"


@pytest.mark.slow
async def test_heartbeats_keep_services_alive_beyond_their_ttl(server: Server) -> None:
    for name in ("by-heartbeat", "by-stream", "by-registering", "not-renewed"):
        await register(server, small_service(name, ttl=FIVE_SECONDS))
    async with watching(server) as watch:
        event = asyncio.ensure_future(watch.event())
        stream = server.stub.KeepAlive()
        while not event.done():
            assert (await heartbeat(server, "by-heartbeat")).renewed_count == 1
            await stream.write(pb.KeepAliveRequest(names=["by-stream"]))
            assert await stream.read() == pb.KeepAliveResponse(renewed_count=1)
            await register(server, small_service("by-registering", ttl=FIVE_SECONDS))
            await asyncio.wait([event], timeout=0.5)
        stream.cancel()
        assert kind_and_name(await event) == ("UNREGISTERED", "not-renewed")

        for name in ("by-heartbeat", "by-stream", "by-registering"):
            assert (await get(server, name)).revision
            await unregister(server, name)
        assert [event.reason for event in await watch.events(3)] == [EventReason.EVENT_REASON_CLIENT_REQUEST] * 3


async def test_many_leases_that_end_together_emit_one_event_each(server: Server, redis: RedisProcess) -> None:
    names = sorted(service.name for service in await register_all(server, (small_service(f"s{i}") for i in range(700))))
    async with watching(server) as watch, redis_client(redis) as client:
        for name in names:
            await set_remaining_lease(client, name, 0)
        events = await watch.events(700)
    assert sorted(event.service.name for event in events) == names
    assert {event.reason for event in events} == {EventReason.EVENT_REASON_LEASE_EXPIRED}
    assert [event.revision for event in events] == list(range(701, 1401))


async def test_each_lease_is_removed_once_with_several_servers(server: Server, redis: RedisProcess) -> None:
    async with running(redis.url) as other, watching(server) as here, watching(other) as there:
        await register_all(server, (small_service(f"s{i}") for i in range(20)))
        async with redis_client(redis) as client:
            for i in range(20):
                await set_remaining_lease(client, f"s{i}", 0.01 * i)
        last = await register(server, small_service("last"))
        await eventually(lambda: _all_removed(other, 20), "all leases have been removed")
        last = await register(server, small_service("last", version="2.0.0"))
        for watch in (here, there):
            events = await watch.until(last.revision)
            removed = [event for event in events if event.type == UNREGISTERED]
            assert sorted(event.service.name for event in removed) == sorted(f"s{i}" for i in range(20))
            assert len(events) == 42


async def _all_removed(server: Server, count: int) -> bool:
    names = await find_names(server, ServiceFilter(name_pattern="^s"))
    assert len(names) <= count
    return not names


# Documents in Redis.


async def test_permanent_services_have_no_lease_end(server: Server, redis: RedisProcess) -> None:
    await register(server, small_service("a", ttl=PERMANENT))
    async with redis_client(redis) as client:
        for _ in range(2):
            assert not (await health_of(server, "a")).HasField("lease_expires_at")
            assert await client.ttl("ossa:services:a") == -1
            assert (await heartbeat(server, "a")).renewed_count == 1


async def test_expiry_of_the_document_in_redis_equals_the_end_of_the_lease(server: Server, redis: RedisProcess) -> None:
    await register(server, small_service("a"))
    async with redis_client(redis) as client:
        first = await client.pttl("ossa:services:a")
        assert 290_000 < first <= 300_000
        assert await document_ends_at(client, "a", await lease_ends(server, "a"))

        async def is_less() -> bool:
            return bool(await client.pttl("ossa:services:a") < first)

        await eventually(is_less, "the remaining time decreases")
        await set_remaining_lease(client, "a", 100)
        await heartbeat(server, "a")
        assert 290_000 < await client.pttl("ossa:services:a") <= 300_000
        assert await document_ends_at(client, "a", await lease_ends(server, "a"))


# KeepAlive.


async def test_keep_alive_answers_in_order_and_ends_with_the_client(server: Server) -> None:
    await register_all(server, (small_service(f"s{i}") for i in range(50)))
    stream = server.stub.KeepAlive()
    for i in range(50):  # without waiting for answers
        await stream.write(pb.KeepAliveRequest(names=[f"s{j}" for j in range(i + 1)] + [f"unknown-{i}", f"s{i}"]))
    await stream.done_writing()
    async with asyncio.timeout(TIMEOUT):
        answers = [answer async for answer in stream]
    assert [answer.renewed_count for answer in answers] == list(range(1, 51))
    assert [list(answer.unknown_names) for answer in answers] == [[f"unknown-{i}"] for i in range(50)]
    assert await stream.code() is grpc.StatusCode.OK


async def test_keep_alive_answers_each_message_immediately(server: Server) -> None:
    await register(server, small_service("a"))
    stream = server.stub.KeepAlive()
    for _ in range(3):
        await stream.write(pb.KeepAliveRequest(names=["a"]))
        async with asyncio.timeout(TIMEOUT):
            assert await stream.read() == pb.KeepAliveResponse(renewed_count=1)
    await unregister(server, "a")
    await stream.write(pb.KeepAliveRequest(names=["a"]))
    assert await stream.read() == pb.KeepAliveResponse(unknown_names=["a"])
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_keep_alive_without_messages_ends_cleanly(server: Server) -> None:
    stream = server.stub.KeepAlive()
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() is grpc.StatusCode.OK


async def test_keep_alive_ends_with_the_first_invalid_message(server: Server) -> None:
    await register(server, small_service("a"))
    for bad, fields in (([], ["names"]), (["a", "-"], ["names[1]"])):
        stream = server.stub.KeepAlive()
        await stream.write(pb.KeepAliveRequest(names=["a"]))
        await stream.write(pb.KeepAliveRequest(names=bad))
        answers: list[pb.KeepAliveResponse] = []
        async with asyncio.timeout(TIMEOUT):
            refused = await failure(_read_all(stream, answers))
        assert answers == [pb.KeepAliveResponse(renewed_count=1)]
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


async def _read_all(
    stream: "grpc.aio.StreamStreamCall[pb.KeepAliveRequest, pb.KeepAliveResponse]", answers: list[pb.KeepAliveResponse]
) -> None:
    async for answer in stream:
        answers.append(answer)  # noqa: PERF401 - answers before an error are kept too


# Cleanup.


async def test_cleanup_removes_only_expired_leases(redis: RedisProcess) -> None:
    async with run_without_sweeps(redis) as (server, client):
        await register_all(
            server,
            [small_service("permanent", ttl=PERMANENT), *map(small_service, ("late", "later", "alive", "saved"))],
        )
        assert await cleanup(server) == []
        await set_remaining_lease(client, "later", -5)
        await set_remaining_lease(client, "late", -10)
        await set_remaining_lease(client, "saved", -10)
        await set_remaining_lease(client, "alive", 10)
        await heartbeat(server, "saved")
        last = await get(server, "late")

        async with watching(server) as watch:
            assert await cleanup(server) == ["late", "later"], "in the order of removal"
            events = await watch.events(2)
        assert [kind_and_name(event) for event in events] == [("UNREGISTERED", "late"), ("UNREGISTERED", "later")]
        assert {event.reason for event in events} == {EventReason.EVENT_REASON_CLEANUP}
        assert events[0].service == last
        assert await find_names(server, ServiceFilter()) == ["alive", "permanent", "saved"]
        assert not await client.exists("ossa:services:late")
        assert await cleanup(server) == []


async def test_cleanup_removes_any_number_of_services(redis: RedisProcess) -> None:
    async with run_without_sweeps(redis) as (server, client):
        await register_all(server, (small_service(f"s{i:04}") for i in range(1_200)))
        for i in range(1_199):
            await set_remaining_lease(client, f"s{i:04}", i - 2_000)
        assert await cleanup(server) == [f"s{i:04}" for i in range(1_199)]
        assert await find_names(server, ServiceFilter()) == ["s1199"]


async def test_concurrent_cleanups_remove_each_service_once(redis: RedisProcess) -> None:
    async with run_without_sweeps(redis) as (server, client):
        await register_all(server, (small_service(f"s{i:04}") for i in range(600)))
        for i in range(600):
            await set_remaining_lease(client, f"s{i:04}", -1)
        removed = await asyncio.gather(*(cleanup(server) for _ in range(10)))
        assert sorted(name for names in removed for name in names) == [f"s{i:04}" for i in range(600)]
        assert await find_names(server, ServiceFilter()) == []
