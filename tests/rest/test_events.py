"""``GET /events``: changes as Server-Sent Events."""

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from yarl import URL

from ossa.registry.v1.registry_service_pb2 import BatchRegisterServicesRequest, ReportServiceHealthRequest
from ossa.registry.v1.service_pb2 import HealthStatus
from ossa_common.cursors import Cursor, decode_cursor, encode_cursor
from registry_server.app import serving
from registry_server.gateway import sse
from tests.rest.client import BASE, Rest, client, service
from tests.rest.sse_client import Follower, SseEvent, following, streaming
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running, settings
from tests.support.waiting import until

CHANGES, DISCONNECTS = 2_000, 50


def names_of(events: list[SseEvent]) -> list[tuple[str, str]]:
    """Return the names of events and of their services."""
    return [(event.name, event.data["service"]["name"]) for event in events]


async def test_events_have_the_names_of_the_ossa_reference_implementation(server: Server, rest: Rest) -> None:
    async with streaming(server.http) as stream:
        await stream.read_until_id()
        registered = (await rest.post("/services", service())).data
        updated = (await rest.put("/services/agent", {"version": "2"})).data
        await server.stub.ReportServiceHealth(
            ReportServiceHealthRequest(name="agent", status=HealthStatus.HEALTH_STATUS_HEALTHY)
        )
        await rest.delete("/services/agent")
        events = await stream.next_events(4)
    assert [event.name for event in events] == [
        "service:registered",
        "service:updated",
        "service:health:changed",
        "service:unregistered",
    ]
    assert events[0].data["service"] == registered
    assert events[1].data["service"] == updated
    assert events[2].data["service"]["health"]["status"] == "healthy"
    assert events[2].data["previousHealth"] == "unknown"
    assert events[3].data["service"]["name"] == "agent"
    assert [event.data["reason"] for event in events] == [
        "client_request",
        "client_request",
        "health_report",
        "client_request",
    ]
    assert [event.data["revision"] for event in events] == [1, 2, 3, 4]


async def test_lease_expiry_is_reported_with_its_reason(redis: RedisProcess) -> None:
    async with (
        running(redis.url, lease={"sweep_interval_ms": 20}) as server,
        client(server.http) as rest,
        streaming(server.http) as stream,
        Redis.from_url(redis.url) as store,
    ):
        await stream.read_until_id()
        await rest.post("/services", service())
        await store.zadd("ossa:registry:leases", {"agent": 1}, xx=True)
        events = await stream.next_events(2)
    assert (events[1].name, events[1].data["reason"]) == ("service:unregistered", "lease_expired")


async def test_stream_starts_with_an_id_and_a_reconnect_delay(server: Server, rest: Rest) -> None:
    await rest.post("/services", service())
    async with streaming(server.http) as stream:
        id_ = await stream.read_until_id()
        assert decode_cursor(id_).resumable
        assert 1_000 <= stream.retry_ms <= 3_000
        assert stream.response.headers["Cache-Control"] == "no-store"
        assert stream.response.headers["X-Request-Id"]


async def test_filters_are_those_of_discovery(server: Server, rest: Rest) -> None:
    async with streaming(server.http, "capability=ocr&label.region=eu&health=healthy,unknown") as stream:
        await stream.read_until_id()
        ocr: dict[str, Any] = {"capabilities": [{"name": "ocr", "version": "1"}]}
        await rest.post("/services", service("no-label", **ocr))
        await rest.post("/services", service("yes", **ocr, metadata={"labels": {"region": "eu"}}))
        await rest.put("/services/yes", {"health": {"status": "unhealthy"}})
        await rest.put("/services/yes", {"health": {"status": "healthy"}})
        events = await stream.next_events(3)
    assert names_of(events) == [
        ("service:registered", "yes"),
        ("service:unmatched", "yes"),
        ("service:health:changed", "yes"),
    ]


async def test_snapshot_has_a_start_and_an_end_and_precedes_changes(server: Server, rest: Rest) -> None:
    one = (await rest.post("/services", service("one"))).data
    two = (await rest.post("/services", service("two"))).data
    async with streaming(server.http, "snapshot=true") as stream:
        started, *services, complete = await stream.next_events(4)
        assert (started.name, started.data, started.id) == ("registry:snapshot:started", {}, "")
        assert [(each.name, each.data["service"], each.id) for each in services] == [
            ("service:snapshot", one, ""),
            ("service:snapshot", two, ""),
        ]
        assert (complete.name, complete.data) == ("registry:snapshot:complete", {"revision": 2})
        assert decode_cursor(complete.id) == decode_cursor(complete.id)._replace(revision=2, resumable=True)
        await rest.delete("/services/one")
        assert names_of([await stream.next_event()]) == [("service:unregistered", "one")]


async def test_empty_snapshot_is_complete(server: Server) -> None:
    async with streaming(server.http, "snapshot=true&name=unknown") as stream:
        assert [event.name for event in await stream.next_events(2)] == [
            "registry:snapshot:started",
            "registry:snapshot:complete",
        ]


async def test_stream_resumes_after_any_id(server: Server, rest: Rest) -> None:
    async with streaming(server.http) as stream:
        start = await stream.read_until_id()
        # A batch, so that several changes share one watch message.
        services = [small_service(f"agent-{i:02}") for i in range(40)]
        await server.stub.BatchRegisterServices(BatchRegisterServicesRequest(services=services))
        events = await stream.next_events(40)
    assert [event.data["revision"] for event in events] == list(range(1, 41))
    for number, id_ in enumerate([start, *(event.id for event in events[:-1])]):
        async with streaming(server.http, headers={"Last-Event-ID": id_}) as again:
            assert (await again.next_event()).data == events[number].data
    async with streaming(server.http, headers={"Last-Event-ID": events[-1].id}) as again:
        await rest.delete("/services/agent-00")
        assert (await again.next_event()).data["revision"] == 41


async def test_id_header_takes_precedence_over_the_query(server: Server, rest: Rest) -> None:
    async with streaming(server.http) as stream:
        first = await stream.read_until_id()
        await rest.post("/services", service("one"))
        second = (await stream.next_event()).id
        await rest.post("/services", service("two"))
    async with streaming(server.http, f"lastEventId={first}") as again:
        assert names_of(await again.next_events(2)) == [("service:registered", "one"), ("service:registered", "two")]
    async with streaming(server.http, f"lastEventId={first}", {"Last-Event-ID": second}) as again:
        assert names_of([await again.next_event()]) == [("service:registered", "two")]
    async with streaming(server.http, f"lastEventId={second}&snapshot=true") as again:
        assert (await again.next_event()).name == "service:registered", "a valid cursor needs no snapshot"


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("capability=", ["capability"]),
        ("colour=red", ["colour"]),
        ("pageSize=1", ["pageSize"]),
        ("snapshot=yes", ["snapshot"]),
        ("name=(&health=sick", ["health", "name"]),
        ("lastEventId=nonsense", ["Last-Event-ID"]),
        ("lastEventId=%F0%9F%90%8D", ["Last-Event-ID"]),
    ],
)
async def test_bad_parameters_are_refused_before_the_stream_starts(query: str, fields: list[str], rest: Rest) -> None:
    answer = await rest.get(f"/events?{query}", Accept="text/event-stream")
    assert (answer.status, answer.code, sorted(answer.fields)) == (400, "INVALID_REQUEST", fields)


@pytest.mark.parametrize("id_", ["nonsense", encode_cursor(Cursor("e", 5))[:-1] + "!", "a b"])
async def test_malformed_id_is_refused(id_: str, rest: Rest) -> None:
    answer = await rest.get("/events", Last_Event_ID=id_)
    assert (answer.status, answer.fields) == (400, ["Last-Event-ID"])


def expired_cursors(server: Server) -> list[str]:
    here = server.parts.hub.replica.position
    return [
        encode_cursor(Cursor("another", here.revision)),
        encode_cursor(Cursor(here.epoch, here.revision, resumable=False)),
    ]


async def test_expired_cursor_is_answered_with_410(server: Server, rest: Rest) -> None:
    for cursor in expired_cursors(server):
        answer = await rest.get("/events", Last_Event_ID=cursor, Accept="text/event-stream")
        assert (answer.status, answer.code) == (410, "CURSOR_EXPIRED")


async def test_expired_cursor_starts_over_if_a_snapshot_is_requested(server: Server, rest: Rest) -> None:
    await rest.post("/services", service())
    for cursor in expired_cursors(server):
        async with streaming(server.http, "snapshot=true", {"Last-Event-ID": cursor}) as stream:
            stream.id = cursor
            started, snapshot, complete = await stream.next_events(3)
        assert (started.name, started.id) == ("registry:snapshot:started", ""), "the client drops the expired id"
        assert (snapshot.name, snapshot.id) == ("service:snapshot", "")
        assert complete.id not in ("", cursor)


async def test_keep_alive_comments_advance_the_id_of_a_quiet_stream(redis: RedisProcess) -> None:
    async with (
        running(redis.url, http={"events_keep_alive_ms": 100}) as server,
        client(server.http) as rest,
        streaming(server.http, "name=unknown") as stream,
    ):
        before = await stream.read_until_id()
        await rest.post("/services", service())  # does not match
        after = await stream.read_until_id(before)
        assert decode_cursor(after).revision == 1
        assert stream.comments >= 1


async def test_head_returns_the_headers_and_leaves_no_watcher(server: Server, rest: Rest) -> None:
    answer = await rest.call("HEAD", "/events")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    assert server.parts.hub.watchers == 0


@pytest.mark.parametrize("leave", ["close", "abort"])
async def test_client_that_leaves_gives_its_place_back_at_once(redis: RedisProcess, leave: str) -> None:
    limits = {"watches": 2, "watches_per_caller": 1}
    async with running(redis.url, http={"events_keep_alive_ms": 3_600_000}, limits=limits) as server:
        url = URL(server.http)
        for _ in range(4):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(f"GET {BASE}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
            assert b"retry:" in await reader.readuntil(b"\n\n")
            getattr(writer.transport, leave)()
            await until(lambda: server.parts.hub.watchers == 0)
        assert server.parts.hub.counters.ended["CLIENT_LEFT"] == 4


# Slow readers.


async def change_until(server: Server, condition: Callable[[], bool]) -> int:
    """Change large services until a condition holds; return the last revision."""
    number = 0
    async with asyncio.timeout(60):
        while not condition():
            number += 1
            large = small_service(
                f"agent-{number % 50}", version=f"1.{number}.0", metadata={"description": "x" * 4_000}
            )
            await server.stub.BatchRegisterServices(BatchRegisterServicesRequest(services=[large]))
    return server.parts.hub.replica.revision


async def test_slow_reader_is_disconnected_and_can_resume(redis: RedisProcess) -> None:
    async with (
        running(redis.url, watch={"buffer_events": 20}) as server,
        streaming(server.http, read_bufsize=1_024) as slow,
    ):
        await slow.read_until_id()
        last = await change_until(server, lambda: server.parts.hub.watchers == 0)
        events = await slow.remaining_events()
        assert events[-1].name == "registry:error"
        assert events[-1].data["error"]["code"] == "WATCHER_TOO_SLOW"
        seen = [event.data["revision"] for event in events[:-1]]
        async with streaming(server.http, headers={"Last-Event-ID": slow.id}) as again:
            missed = [event.data["revision"] for event in await again.next_events(last - len(seen))]
    assert seen + missed == list(range(1, last + 1))


async def test_client_that_never_reads_is_disconnected_and_released(redis: RedisProcess) -> None:
    async with running(redis.url, http={"write_timeout_ms": 100}) as server:
        url = URL(server.http)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=1)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"GET {BASE}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await until(lambda: server.parts.hub.watchers == 1)
        await change_until(server, lambda: server.parts.hub.watchers == 0)
        writer.transport.abort()


# Endings.


async def test_stream_of_a_draining_server_ends_with_a_resumable_id(redis: RedisProcess) -> None:
    async with running(redis.url) as server, client(server.http) as rest:
        stream_context = streaming(server.http)
        stream = await stream_context.__aenter__()
        await stream.read_until_id()
        await rest.post("/services", service("one"))
    events = await stream.remaining_events()
    await stream_context.__aexit__(None, None, None)
    assert [event.name for event in events] == ["service:registered", "registry:error"]
    assert events[-1].data["error"]["code"] == "SHUTTING_DOWN"
    async with running(redis.url) as server, client(server.http) as rest:
        await rest.post("/services", service("two"))
        async with streaming(server.http, headers={"Last-Event-ID": events[-1].id}) as again:
            assert names_of([await again.next_event()]) == [("service:registered", "two")]


async def test_unready_registry_is_reported_in_the_stream() -> None:
    # An EventSource never reconnects after status 503.
    async with serving(settings("redis://127.0.0.1:1")) as served:
        headers = {"Accept": "text/event-stream"}
        async with streaming(f"http://{served.http_address}", "snapshot=true", headers) as stream:
            events = await stream.remaining_events()
            assert stream.retry_ms
    assert [event.name for event in events] == ["registry:error"]
    assert events[0].data["error"]["code"] == "STORE_UNAVAILABLE"


async def test_flushed_redis_is_reported_as_removals(redis: RedisProcess) -> None:
    async with (
        running(redis.url, http={"events_keep_alive_ms": 100}, redis={"repair": False}) as server,
        client(server.http) as rest,
        following(server.http) as follower,
        Redis.from_url(redis.url) as store,
    ):
        for i in range(5):
            await rest.post("/services", service(f"agent-{i}"))
        await follower.wait_for_revision(5)
        await store.flushall()
        await rest.post("/services", service("after"))
        await until(lambda: list(follower.state) == ["after"])


async def test_unexpected_error_in_a_stream_is_reported_without_details(
    server: Server, rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> bytes:
        raise RuntimeError("a secret detail")

    async with streaming(server.http) as stream:
        await stream.read_until_id()
        monkeypatch.setattr(sse, "encode_batch", bug)
        await rest.post("/services", service())
        events = await stream.remaining_events()
    assert [(event.name, event.data["error"]["code"]) for event in events] == [("registry:error", "INTERNAL")]
    assert "secret" not in str(events)


# Consistency.


async def test_client_has_the_exact_state_after_50_disconnects(redis: RedisProcess) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    async with (
        running(redis.url, http={"events_keep_alive_ms": 100}) as server,
        client(server.http) as rest,
        following(server.http) as complete,
        following(server.http, "snapshot=true&capability=c-1&health=unknown,healthy") as filtered,
    ):
        remaining = CHANGES
        done = 0

        async def make_changes(rng: random.Random, number: int) -> None:
            nonlocal remaining, done
            names: set[str] = set()
            while remaining > 0:
                remaining -= 1
                await make_change(rest, rng, f"agent-{number}-{rng.randrange(10)}", names, remaining)
                done += 1

        async def disconnect_repeatedly(follower: Follower, rng: random.Random) -> None:
            for at in sorted(rng.sample(range(CHANGES - 100), DISCONNECTS)):
                await until(lambda at=at: done >= at)  # type: ignore[misc]
                follower.disconnect()

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(make_changes(random.Random(f"{seed}/{number}"), number))
            group.create_task(disconnect_repeatedly(complete, random.Random(f"{seed}/a")))
            group.create_task(disconnect_repeatedly(filtered, random.Random(f"{seed}/b")))

        last = server.parts.hub.replica.revision
        await complete.wait_for_revision(last)
        assert complete.revisions == list(range(complete.revisions[0], last + 1)), "each exactly once"
        assert complete.state == await listed(rest, "")
        expected = await listed(rest, "capability=c-1&health=unknown,healthy&")
        await until(lambda: filtered.state == expected)
        assert min(complete.streams, filtered.streams) > DISCONNECTS / 2
        assert complete.snapshots < DISCONNECTS / 2, "it resumed from its id instead of starting over"


async def make_change(rest: Rest, rng: random.Random, name: str, names: set[str], number: int) -> None:
    """Make a random change to a service."""
    kind = rng.random()
    if name in names and kind < 0.2:
        names.remove(name)
        answer = await rest.delete(f"/services/{name}")
    elif name in names and kind < 0.6:
        status = rng.choice(["healthy", "unhealthy", "degraded"])
        answer = await rest.put(f"/services/{name}", {"health": {"status": status, "responseTime": number}})
    else:
        names.add(name)
        capabilities = [{"name": f"c-{rng.randrange(3)}", "version": "1"}]
        answer = await rest.post("/services", service(name, version=f"1.{number}.0", capabilities=capabilities))
    assert answer.status < 300


async def listed(rest: Rest, query: str) -> dict[str, dict[str, Any]]:
    """Return the listed services by name."""
    services = (await rest.get(f"/services?{query}pageSize=1000")).data["services"]
    return {each["name"]: each for each in services}
