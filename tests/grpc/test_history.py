"""``ListEvents``, and what NOT_FOUND says about services that have left."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.grpc.calls import (
    REGISTERED,
    UNREGISTERED,
    UPDATED,
    failure,
    get,
    redis_client,
    register,
    set_remaining_lease,
    unregister,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running


async def list_events(server: Server, name: str = "", **fields: Any) -> pb.ListEventsResponse:
    return await server.stub.ListEvents(pb.ListEventsRequest(name=name, **fields))


def shown(page: pb.ListEventsResponse) -> list[tuple[int, str, int]]:
    return [(event.type, event.service.name, event.revision) for event in page.events]


async def test_events_are_listed_newest_first(server: Server) -> None:
    await register(server, small_service("a"))
    await register(server, small_service("b"))
    await register(server, small_service("a", version="2.0.0"))
    last = await unregister(server, "a")
    page = await list_events(server)
    assert shown(page) == [(UNREGISTERED, "a", 4), (UPDATED, "a", 3), (REGISTERED, "b", 2), (REGISTERED, "a", 1)]
    assert page.events[0].service == last
    assert (page.next_page_token, page.oldest_revision) == ("", 1)
    assert shown(await list_events(server, "b")) == [(REGISTERED, "b", 2)]
    assert shown(await list_events(server, "unknown")) == []

    since = page.events[1].occurred_at
    assert [event.revision for event in (await list_events(server, since=since)).events][:2] == [4, 3]
    later = datetime.now(UTC) + timedelta(hours=1)
    assert shown(await list_events(server, since=later)) == []


@pytest.mark.parametrize("since", [{"seconds": 1 << 60}, {"seconds": -(1 << 60)}, {"nanos": -1}])
async def test_time_that_is_not_valid_is_a_violation(since: dict[str, int], server: Server) -> None:
    error = await failure(list_events(server, since=Timestamp(**since)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == ["since"]


async def test_pages_continue_from_memory_into_the_store(redis: RedisProcess) -> None:
    settings: dict[str, Any] = {
        "redis": {"events_max_length": 100, "events_max_age": 0},
        "watch": {"history_seconds": 0},
    }
    async with running(redis.url, **settings) as server:
        for i in range(150):
            await register(server, small_service("ab"[i % 2], version=f"1.0.{i}"))
        whole = await list_events(server, page_size=1000)
        assert whole.oldest_revision <= 50, "Redis trims approximately"
        assert [event.revision for event in whole.events] == list(range(150, whole.oldest_revision - 1, -1))
        found: list[int] = []
        token = ""
        while True:
            page = await list_events(server, "a", page_size=40, page_token=token)
            found += [event.revision for event in page.events]
            assert page.oldest_revision == whole.oldest_revision
            if not (token := page.next_page_token):
                break
        assert found == [event.revision for event in whole.events if event.service.name == "a"]
        refused = await failure(
            list_events(server, "b", page_token=(await list_events(server, "a")).next_page_token or "x")
        )
        assert refused.fields == ["page_token"]
    async with running(redis.url, **settings) as restarted:
        assert await list_events(restarted, page_size=1000) == whole


async def test_events_within_the_maximum_age_are_kept_beyond_the_number(redis: RedisProcess) -> None:
    for _ in range(2):
        async with running(redis.url, redis={"events_max_length": 100}, watch={"history_seconds": 0}) as server:
            for i in range(150):
                await register(server, small_service("a", version=f"1.0.{i}"))
            kept = await list_events(server, page_size=1000)
            assert (kept.oldest_revision, len(kept.events)) == (1, kept.events[0].revision)


async def test_pages_do_not_end_where_the_store_was_trimmed(server: Server, redis: RedisProcess) -> None:
    for name in "abcd":
        await register(server, small_service(name))
    async with redis_client(redis) as client:
        for kept in (1, 0):
            await client.xtrim("ossa:registry:events", maxlen=kept, approximate=False)
            newest = await list_events(server, page_size=2)
            rest = await list_events(server, page_size=2, page_token=newest.next_page_token)
            assert [event.revision for event in [*newest.events, *rest.events]] == [4, 3, 2, 1]
            assert newest.oldest_revision == rest.oldest_revision == 1
            assert rest.next_page_token == ""


@pytest.mark.own_redis
async def test_events_in_memory_are_listed_without_the_store(redis: RedisProcess, server: Server) -> None:
    await register(server, small_service("a"))
    redis.kill()
    assert shown(await list_events(server)) == [(REGISTERED, "a", 1)]


async def test_not_found_says_when_and_why_a_service_left(server: Server, redis: RedisProcess) -> None:
    assert (await failure(get(server, "gone"))).metadata == {"name": "gone"}
    await register(server, small_service("gone"))
    await register(server, small_service("expired"))
    await unregister(server, "gone")
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "expired", -1)
    await server.stub.Cleanup(pb.CleanupRequest())
    for name, reason, revision in (("gone", "client_request", "3"), ("expired", "cleanup", "4")):
        error = await failure(get(server, name))
        assert error.code is grpc.StatusCode.NOT_FOUND
        removed_at = datetime.fromisoformat(error.metadata.pop("removedAt"))
        assert abs(removed_at - datetime.now(UTC)) < timedelta(minutes=5)
        assert error.metadata == {"name": name, "removedReason": reason, "removedRevision": revision}
    async with running(redis.url) as restarted:
        assert (await failure(get(restarted, "gone"))).metadata["removedReason"] == "client_request"
