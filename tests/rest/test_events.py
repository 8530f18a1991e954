"""``GET /events``: every change as Server-Sent Events."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from yarl import URL

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import (
    BatchRegisterServicesRequest,
    ReportServiceHealthRequest,
    WatchEventsResponse,
)
from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.app import serving
from registry_server.gateway import sse
from registry_server.gateway.documents import Documents
from registry_server.model.event_names import EVENT_NAMES
from registry_server.model.tokens import Cursor, decode_cursor, encode_cursor
from tests.rest.client import BASE, Rest, client, service
from tests.rest.sse_client import Follower, Stream, Told, following, streaming
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running, settings

CHANGES, CUTS = 2_000, 50


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def told_of(events: list[Told]) -> list[tuple[str, str]]:
    return [(event.name, event.data["service"]["name"]) for event in events]


async def test_the_events_have_the_names_of_the_seed(server: Server, rest: Rest) -> None:
    async with streaming(server.http) as stream:
        await stream.take_until_id()
        registered = (await rest.post("/services", service())).data
        updated = (await rest.put("/services/agent", {"version": "2"})).data
        await server.stub.ReportServiceHealth(
            ReportServiceHealthRequest(name="agent", status=HealthStatus.HEALTH_STATUS_HEALTHY)
        )
        await rest.delete("/services/agent")
        events = await stream.some(4)
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


async def test_a_lease_that_ends_is_told_with_its_reason(redis: RedisProcess) -> None:
    async with (
        running(redis.url, lease={"sweep_interval_ms": 20}) as server,
        client(server.http) as rest,
        streaming(server.http) as stream,
        Redis.from_url(redis.url) as store,
    ):
        await stream.take_until_id()
        await rest.post("/services", service())
        await store.zadd("ossa:registry:leases", {"agent": 1}, xx=True)
        events = await stream.some(2)
    assert (events[1].name, events[1].data["reason"]) == ("service:unregistered", "lease_expired")


async def test_a_stream_begins_at_once_with_an_id_and_a_time_to_come_back(server: Server, rest: Rest) -> None:
    await rest.post("/services", service())
    async with streaming(server.http) as stream:
        id_ = await stream.take_until_id()
        assert decode_cursor(id_).resumable
        assert 1_000 <= stream.retry_ms <= 3_000
        assert stream.response.headers["Cache-Control"] == "no-store"
        assert stream.response.headers["X-Request-Id"]


async def test_the_filters_are_those_of_discovery(server: Server, rest: Rest) -> None:
    async with streaming(server.http, "capability=ocr&label.region=eu&health=healthy,unknown") as stream:
        await stream.take_until_id()
        ocr: dict[str, Any] = {"capabilities": [{"name": "ocr", "version": "1"}]}
        await rest.post("/services", service("no-label", **ocr))
        await rest.post("/services", service("yes", **ocr, metadata={"labels": {"region": "eu"}}))
        await rest.put("/services/yes", {"health": {"status": "unhealthy"}})
        await rest.put("/services/yes", {"health": {"status": "healthy"}})
        events = await stream.some(3)
    assert told_of(events) == [
        ("service:registered", "yes"),
        ("service:unmatched", "yes"),
        ("service:health:changed", "yes"),
    ]


async def test_a_snapshot_is_framed_and_changes_follow_it(server: Server, rest: Rest) -> None:
    one = (await rest.post("/services", service("one"))).data
    two = (await rest.post("/services", service("two"))).data
    async with streaming(server.http, "snapshot=true") as stream:
        started, *services, complete = await stream.some(4)
        assert (started.name, started.data, started.id) == ("registry:snapshot:started", {}, "")
        assert [(each.name, each.data["service"], each.id) for each in services] == [
            ("service:snapshot", one, ""),
            ("service:snapshot", two, ""),
        ]
        assert (complete.name, complete.data) == ("registry:snapshot:complete", {"revision": 2})
        assert decode_cursor(complete.id) == decode_cursor(complete.id)._replace(revision=2, resumable=True)
        await rest.delete("/services/one")
        assert told_of([await stream.next()]) == [("service:unregistered", "one")]


async def test_a_snapshot_of_nothing_is_complete(server: Server) -> None:
    async with streaming(server.http, "snapshot=true&name=nobody") as stream:
        assert [told.name for told in await stream.some(2)] == [
            "registry:snapshot:started",
            "registry:snapshot:complete",
        ]


async def test_a_stream_goes_on_right_after_any_id(server: Server, rest: Rest) -> None:
    async with streaming(server.http) as stream:
        start = await stream.take_until_id()
        # Many changes at once, so that several share a message of the watch.
        services = [small_service(f"agent-{i:02}") for i in range(40)]
        await server.stub.BatchRegisterServices(BatchRegisterServicesRequest(services=services))
        events = await stream.some(40)
    assert [event.data["revision"] for event in events] == list(range(1, 41))
    for number, id_ in enumerate([start, *(event.id for event in events[:-1])]):
        async with streaming(server.http, headers={"Last-Event-ID": id_}) as again:
            assert (await again.next()).data == events[number].data
    async with streaming(server.http, headers={"Last-Event-ID": events[-1].id}) as again:
        await rest.delete("/services/agent-00")
        assert (await again.next()).data["revision"] == 41


async def test_the_id_may_come_in_the_query_but_the_header_counts(server: Server, rest: Rest) -> None:
    async with streaming(server.http) as stream:
        first = await stream.take_until_id()
        await rest.post("/services", service("one"))
        second = (await stream.next()).id
        await rest.post("/services", service("two"))
    async with streaming(server.http, f"lastEventId={first}") as again:
        assert told_of(await again.some(2)) == [("service:registered", "one"), ("service:registered", "two")]
    async with streaming(server.http, f"lastEventId={first}", {"Last-Event-ID": second}) as again:
        assert told_of([await again.next()]) == [("service:registered", "two")]
    async with streaming(server.http, f"lastEventId={second}&snapshot=true") as again:
        assert (await again.next()).name == "service:registered", "a cursor that is good needs no snapshot"


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
async def test_bad_parameters_are_refused_before_the_stream(query: str, fields: list[str], rest: Rest) -> None:
    answer = await rest.get(f"/events?{query}", Accept="text/event-stream")
    assert (answer.status, answer.code, sorted(answer.fields)) == (400, "INVALID_REQUEST", fields)


@pytest.mark.parametrize("id_", ["nonsense", encode_cursor(Cursor("e", 5))[:-1] + "!", "a b"])
async def test_an_id_that_is_none_is_refused(id_: str, rest: Rest) -> None:
    answer = await rest.get("/events", Last_Event_ID=id_)
    assert (answer.status, answer.fields) == (400, ["Last-Event-ID"])


def too_old(server: Server) -> list[str]:
    here = server.parts.hub.replica.position
    return [
        encode_cursor(Cursor("another", here.revision)),
        encode_cursor(Cursor(here.epoch, here.revision, resumable=False)),
    ]


async def test_a_cursor_that_is_too_old_is_gone(server: Server, rest: Rest) -> None:
    for cursor in too_old(server):
        answer = await rest.get("/events", Last_Event_ID=cursor, Accept="text/event-stream")
        assert (answer.status, answer.code) == (410, "CURSOR_EXPIRED")


async def test_a_cursor_that_is_too_old_begins_anew_where_a_snapshot_is_wanted(server: Server, rest: Rest) -> None:
    await rest.post("/services", service())
    for cursor in too_old(server):
        async with streaming(server.http, "snapshot=true", {"Last-Event-ID": cursor}) as stream:
            stream.id = cursor
            started, snapshot, complete = await stream.some(3)
        assert (started.name, started.id) == ("registry:snapshot:started", ""), "the old id is forgotten"
        assert (snapshot.name, snapshot.id) == ("service:snapshot", "")
        assert complete.id not in ("", cursor)


async def test_a_quiet_stream_gets_comments_that_keep_its_id_young(redis: RedisProcess) -> None:
    async with (
        running(redis.url, http={"events_keep_alive_ms": 100}) as server,
        client(server.http) as rest,
        streaming(server.http, "name=nobody") as stream,
    ):
        before = await stream.take_until_id()
        await rest.post("/services", service())  # does not match
        after = await stream.take_until_id(before)
        assert decode_cursor(after).revision == 1
        assert stream.comments >= 1


async def test_head_tells_the_headers_and_leaves_no_watcher(server: Server, rest: Rest) -> None:
    answer = await rest.call("HEAD", "/events")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    assert server.parts.hub.watchers == 0


async def test_a_client_that_leaves_is_forgotten(redis: RedisProcess) -> None:
    async with running(redis.url, http={"events_keep_alive_ms": 100}) as server:
        for _ in range(3):
            async with streaming(server.http) as stream:
                await stream.take_until_id()
        await eventually(lambda: server.parts.hub.watchers == 0)


# Slow readers.


async def change_until(server: Server, over: Callable[[], bool]) -> int:
    """Changes large services until something is over; gives the last revision."""
    number = 0
    async with asyncio.timeout(60):
        while not over():
            number += 1
            big = small_service(f"agent-{number % 50}", version=f"1.{number}.0", metadata={"description": "x" * 4_000})
            await server.stub.BatchRegisterServices(BatchRegisterServicesRequest(services=[big]))
    return server.parts.hub.replica.revision


async def test_a_slow_reader_is_cut_and_goes_on_where_it_was(redis: RedisProcess) -> None:
    async with (
        running(redis.url, watch={"buffer_events": 20}) as server,
        streaming(server.http, read_bufsize=1_024) as slow,
    ):
        await slow.take_until_id()
        last = await change_until(server, lambda: server.parts.hub.watchers == 0)
        events = await slow.rest()
        assert events[-1].name == "registry:error"
        assert events[-1].data["error"]["code"] == "WATCHER_TOO_SLOW"
        seen = [event.data["revision"] for event in events[:-1]]
        async with streaming(server.http, headers={"Last-Event-ID": slow.id}) as again:
            missed = [told.data["revision"] for told in await again.some(last - len(seen))]
    assert seen + missed == list(range(1, last + 1))


async def test_a_reader_that_never_reads_is_cut_and_holds_nothing(redis: RedisProcess) -> None:
    async with running(redis.url, http={"write_timeout_ms": 100}) as server:
        url = URL(server.http)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=1)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"GET {BASE}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await eventually(lambda: server.parts.hub.watchers == 1)
        await change_until(server, lambda: server.parts.hub.watchers == 0)
        writer.transport.abort()


# Ends.


async def test_a_server_that_drains_ends_its_streams_with_a_good_id(redis: RedisProcess) -> None:
    async with running(redis.url) as server, client(server.http) as rest:
        stream_context = streaming(server.http)
        stream = await stream_context.__aenter__()
        await stream.take_until_id()
        await rest.post("/services", service("one"))
    events = await stream.rest()
    await stream_context.__aexit__(None, None, None)
    assert [event.name for event in events] == ["service:registered", "registry:error"]
    assert events[-1].data["error"]["code"] == "SHUTTING_DOWN"
    async with running(redis.url) as server, client(server.http) as rest:
        await rest.post("/services", service("two"))
        async with streaming(server.http, headers={"Last-Event-ID": events[-1].id}) as again:
            assert told_of([await again.next()]) == [("service:registered", "two")]


async def test_an_event_source_is_told_in_the_stream_that_the_registry_is_not_ready() -> None:
    # By 503 it would be told to stay away for ever.
    async with serving(settings("redis://127.0.0.1:1")) as served:
        headers = {"Accept": "text/event-stream"}
        async with streaming(f"http://{served.http_address}", "snapshot=true", headers) as stream:
            events = await stream.rest()
            assert stream.retry_ms
    assert [event.name for event in events] == ["registry:error"]
    assert events[0].data["error"]["code"] == "STORE_UNAVAILABLE"


async def test_a_redis_that_was_emptied_is_told_as_what_became_of_it(redis: RedisProcess) -> None:
    async with (
        running(redis.url, http={"events_keep_alive_ms": 100}, redis={"repair": False}) as server,
        client(server.http) as rest,
        following(server.http) as follower,
        Redis.from_url(redis.url) as store,
    ):
        for i in range(5):
            await rest.post("/services", service(f"agent-{i}"))
        await follower.reached(5)
        await store.flushall()
        await rest.post("/services", service("after"))
        await eventually(lambda: list(follower.state) == ["after"])


async def test_a_bug_within_a_stream_is_told_in_the_stream(
    server: Server, rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> bytes:
        raise RuntimeError("the secret of the house")

    async with streaming(server.http) as stream:
        await stream.take_until_id()
        monkeypatch.setattr(sse, "text_of", bug)
        await rest.post("/services", service())
        events = await stream.rest()
    assert [(event.name, event.data["error"]["code"]) for event in events] == [("registry:error", "INTERNAL")]
    assert "secret" not in str(events)


# The text.


def message(*events: Event, **fields: Any) -> WatchEventsResponse:
    return WatchEventsResponse(events=events, cursor=encode_cursor(Cursor("e", 9)), revision=9, **fields)


def ids(message: WatchEventsResponse) -> list[str | None]:
    text = sse.text_of(message, Documents()).decode()
    blocks = [block for block in text.split("\n\n") if block]
    return [next((line[4:] for line in block.split("\n") if line.startswith("id: ")), None) for block in blocks]


def event(revision: int, reason: EventReason.ValueType = EventReason.EVENT_REASON_CLIENT_REQUEST) -> Event:
    return Event(
        type=EventType.EVENT_TYPE_SERVICE_REGISTERED, service=small_service("a"), revision=revision, reason=reason
    )


def test_each_event_has_the_cursor_right_after_it() -> None:
    here = encode_cursor(Cursor("e", 9))
    assert ids(message(event(3), event(5))) == [encode_cursor(Cursor("e", 3)), here]
    assert ids(message()) == [here]


def test_within_the_one_step_of_a_resync_there_is_no_cursor() -> None:
    resync = EventReason.EVENT_REASON_RESYNC
    here = encode_cursor(Cursor("e", 9))
    assert ids(message(event(3), event(2, resync), event(2, resync))) == [None, None, here]


def test_an_error_of_the_registry_is_told_without_a_service() -> None:
    error = Event(type=EventType.EVENT_TYPE_REGISTRY_ERROR, error="the store\nis away", revision=9)
    text = sse.text_of(message(error), Documents()).decode()
    stream = Stream(None)  # type: ignore[arg-type]
    (told,) = [told for line in text.split("\n") if (told := stream.take(line))]
    assert told.name == "registry:error"
    assert told.data["error"]["message"] == "the store\nis away"


def test_every_type_of_event_has_a_name_and_every_reason_a_word() -> None:
    assert set(EVENT_NAMES) == set(EventType.values()) - {EventType.EVENT_TYPE_UNSPECIFIED}
    assert set(sse.REASONS) == set(EventReason.values()) - {EventReason.EVENT_REASON_UNSPECIFIED}


# The proof.


async def test_a_client_cut_50_times_in_2000_changes_ends_with_the_exact_state(redis: RedisProcess) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    async with (
        running(redis.url, http={"events_keep_alive_ms": 100}) as server,
        client(server.http) as rest,
        following(server.http) as everything,
        following(server.http, "snapshot=true&capability=c-1&health=unknown,healthy") as some,
    ):
        left = CHANGES
        done = 0

        async def write(chance: random.Random, number: int) -> None:
            nonlocal left, done
            mine: set[str] = set()
            while left > 0:
                left -= 1
                await change(rest, chance, f"agent-{number}-{chance.randrange(10)}", mine, left)
                done += 1

        async def cut(follower: Follower, chance: random.Random) -> None:
            for at in sorted(chance.sample(range(CHANGES - 100), CUTS)):
                await eventually(lambda at=at: done >= at)  # type: ignore[misc]
                follower.cut()

        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(write(random.Random(f"{seed}/{number}"), number))
            group.create_task(cut(everything, random.Random(f"{seed}/a")))
            group.create_task(cut(some, random.Random(f"{seed}/b")))

        last = server.parts.hub.replica.revision
        await everything.reached(last)
        assert everything.revisions == list(range(everything.revisions[0], last + 1)), "each once, none left out"
        assert everything.state == await listed(rest, "")
        wanted = await listed(rest, "capability=c-1&health=unknown,healthy&")
        await eventually(lambda: some.state == wanted)
        assert min(everything.streams, some.streams) > CUTS / 2
        assert everything.snapshots < CUTS / 2, "it went on from its id, and did not begin anew each time"


async def change(rest: Rest, chance: random.Random, name: str, mine: set[str], number: int) -> None:
    """Makes one change to a service."""
    kind = chance.random()
    calls: list[Callable[[], Awaitable[Any]]] = []
    if name in mine and kind < 0.2:
        mine.remove(name)
        calls.append(lambda: rest.delete(f"/services/{name}"))
    elif name in mine and kind < 0.6:
        status = chance.choice(["healthy", "unhealthy", "degraded"])
        health = {"status": status, "responseTime": number}
        calls.append(lambda: rest.put(f"/services/{name}", {"health": health}))
    else:
        mine.add(name)
        capabilities = [{"name": f"c-{chance.randrange(3)}", "version": "1"}]
        calls.append(lambda: rest.post("/services", service(name, version=f"1.{number}.0", capabilities=capabilities)))
    for call in calls:
        assert (await call()).status < 300


async def listed(rest: Rest, query: str) -> dict[str, dict[str, Any]]:
    services = (await rest.get(f"/services?{query}pageSize=1000")).data["services"]
    return {each["name"]: each for each in services}
