import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsResponse
from ossa.registry.v1.service_pb2 import HealthStatus, ServiceFilter
from registry_server.catalog import discovery as discovery_module
from registry_server.catalog.change import Change
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.errors import CursorExpired, RegistryError, ShuttingDown, Violation, WatcherTooSlow
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record
from registry_server.model.tokens import Cursor, decode_cursor
from registry_server.store import Position
from registry_server.watch import Watcher, WatchHub, WatchLimits, fits_one_message
from tests.support.samples import small_service

TIMEOUT = 10.0
REGISTERED = EventType.EVENT_TYPE_SERVICE_REGISTERED
UPDATED = EventType.EVENT_TYPE_SERVICE_UPDATED
UNREGISTERED = EventType.EVENT_TYPE_SERVICE_UNREGISTERED
HEALTH_CHANGED = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
SNAPSHOT = EventType.EVENT_TYPE_SERVICE_SNAPSHOT
UNMATCHED = EventType.EVENT_TYPE_SERVICE_UNMATCHED
REGISTRY_ERROR = EventType.EVENT_TYPE_REGISTRY_ERROR


class Catalog:
    """A replica that is changed by hand, and a hub over it."""

    def __init__(
        self, *, history: int = 1000, buffer_events: int = 1000, buffer_bytes: int = 1 << 20, **limits: Any
    ) -> None:
        self.replica = Replica(history)
        self.replica.start_at([], Position("epoch", 0))
        self.hub = WatchHub(self.replica, Discovery(self.replica), WatchLimits(buffer_events, buffer_bytes, **limits))

    def put(self, name: str, **fields: Any) -> None:
        revision = self.replica.revision + 1
        service = small_service(name, **{"group": name, "revision": revision, **fields})
        service.updated_at.FromMilliseconds(revision * 1000)
        self._apply(Record(service.SerializeToString()), name)

    def delete(self, name: str) -> None:
        self._apply(None, name)

    def notice(self, error: str) -> None:
        """Something is wrong with the registry itself."""
        self.replica.apply_change(
            Change(
                revision=self.replica.revision + 1,
                type=REGISTRY_ERROR,
                reason=EventReason.EVENT_REASON_HEALTH_CHECK,
                at_ms=1000,
                before=None,
                after=None,
                error=error,
            )
        )

    def resync(self, *changes: Change) -> None:
        self.replica.resync(changes, Position("another", changes[0].revision))

    def _apply(self, after: Record | None, name: str) -> None:
        before = self.replica.records.get(name)
        if before is None and after is None:
            return
        self.replica.apply_change(change(self.replica.revision + 1, before, after))

    @asynccontextmanager
    async def watching(self, filter_: Filter | None = None, **options: Any) -> AsyncIterator[Watcher]:
        with await self.hub.open_watch(filter_ or filtering(), **options) as watcher:
            yield watcher

    @asynccontextmanager
    async def following(self, filter_: Filter | None = None, **options: Any) -> AsyncIterator[Watcher]:
        """A watch whose first message was read."""
        async with self.watching(filter_, **options) as watcher:
            await read(watcher)
            yield watcher


def change(revision: int, before: Record | None, after: Record | None) -> Change:
    if before is None:
        type_ = REGISTERED
    elif after is None:
        type_ = UNREGISTERED
    else:
        type_ = UPDATED if before.status == after.status else HEALTH_CHANGED
    return Change(
        revision=revision,
        type=type_,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
        at_ms=revision * 1000,
        before=before,
        after=after,
    )


def record(name: str, **fields: Any) -> Record:
    return Record(small_service(name, **{"group": name, "revision": 1, **fields}).SerializeToString())


def filtering(**fields: Any) -> Filter:
    violations = list[Violation]()
    filter_ = compile_filter(ServiceFilter(**fields), "filter", violations)
    assert not violations
    return filter_


def tagged(*tags: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"tags": tags, **fields}}


async def read(watcher: Watcher) -> WatchEventsResponse:
    async with asyncio.timeout(TIMEOUT):
        return WatchEventsResponse.FromString(await anext(watcher))


def brief(message: WatchEventsResponse) -> list[tuple[int, str]]:
    return [(event.type, event.service.name) for event in message.events]


def cursor_of(message: WatchEventsResponse) -> Cursor:
    return decode_cursor(message.cursor)


# Beginnings.


async def test_a_watch_from_now_on_says_at_once_where_it_stands() -> None:
    catalog = Catalog()
    catalog.put("a")

    async with catalog.watching() as watcher:
        message = await read(watcher)

    assert message == WatchEventsResponse(cursor=message.cursor, revision=1)
    assert cursor_of(message) == Cursor("epoch", 1)


async def test_a_snapshot_gives_every_match_by_name_then_says_that_it_is_complete() -> None:
    catalog = Catalog()
    for name in "cab":
        catalog.put(name, **tagged("x"))
    catalog.put("other")

    async with catalog.watching(filtering(tags=["x"]), snapshot=True) as watcher:
        state, complete = await read(watcher), await read(watcher)

    assert brief(state) == [(SNAPSHOT, "a"), (SNAPSHOT, "b"), (SNAPSHOT, "c")]
    assert complete == WatchEventsResponse(cursor=complete.cursor, revision=4, snapshot_complete=True)
    first = state.events[0]
    assert first.service == catalog.replica.records["a"].message()
    assert (first.revision, first.occurred_at) == (2, first.service.updated_at)
    assert (first.previous_health, first.reason) == (0, 0)


async def test_a_snapshot_of_nothing_is_complete_at_once() -> None:
    async with Catalog().watching(snapshot=True) as watcher:
        message = await read(watcher)

    assert message.snapshot_complete
    assert not message.events


async def test_what_changes_while_a_snapshot_is_read_comes_after_it() -> None:
    catalog = Catalog(snapshot_message_bytes=1)
    for name in "ab":
        catalog.put(name)

    async with catalog.watching(snapshot=True) as watcher:
        messages = [await read(watcher)]
        catalog.delete("b")
        catalog.put("c")
        messages += [await read(watcher) for _ in range(3)]

    assert [brief(message) for message in messages] == [
        [(SNAPSHOT, "a")],
        [(SNAPSHOT, "b")],
        [],
        [(UNREGISTERED, "b"), (REGISTERED, "c")],
    ]
    assert [message.snapshot_complete for message in messages] == [False, False, True, False]
    assert [message.revision for message in messages] == [2, 2, 2, 4]


async def test_a_cursor_of_an_unfinished_snapshot_is_good_for_nothing() -> None:
    catalog = Catalog(snapshot_message_bytes=1)
    for name in "ab":
        catalog.put(name)

    async with catalog.watching(snapshot=True) as watcher:
        cursors = [cursor_of(await read(watcher)) for _ in range(3)]

    for cursor in cursors[:2]:
        with pytest.raises(CursorExpired, match="unfinished snapshot"):
            await catalog.hub.open_watch(filtering(), cursor=cursor)
    async with catalog.watching(cursor=cursors[2]) as watcher:
        assert brief(await read(watcher)) == []


async def test_a_snapshot_that_needs_a_long_scan_is_of_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_module, "_SCAN_SLICE_RECORDS", 1)
    catalog = Catalog()
    for name in "abcd":
        catalog.put(name)
    joining = asyncio.create_task(catalog.hub.open_watch(filtering(name_pattern="."), snapshot=True))
    await asyncio.sleep(0)
    catalog.delete("b")
    catalog.put("e")

    with await joining as watcher:
        catalog.put("f")
        state, complete, live = [await read(watcher) for _ in range(3)]

    assert brief(state) == [(SNAPSHOT, name) for name in "acde"]
    assert complete.revision == 6
    assert brief(live) == [(REGISTERED, "f")]


async def test_a_cursor_wins_over_a_snapshot() -> None:
    catalog = Catalog()
    catalog.put("a")

    async with catalog.watching(cursor=Cursor("epoch", 0), snapshot=True) as watcher:
        message = await read(watcher)

    assert brief(message) == [(REGISTERED, "a")]


# Cursors.


async def test_a_watch_goes_on_right_after_its_cursor() -> None:
    catalog = Catalog()
    for name in "abc":
        catalog.put(name)

    async with catalog.watching(cursor=Cursor("epoch", 1)) as watcher:
        catalog.put("d")
        past, live = await read(watcher), await read(watcher)

    assert brief(past) == [(REGISTERED, "b"), (REGISTERED, "c")]
    assert cursor_of(past) == Cursor("epoch", 3)
    assert brief(live) == [(REGISTERED, "d")]


async def test_the_past_comes_in_messages_of_bounded_size_each_with_its_own_cursor() -> None:
    catalog = Catalog(message_bytes=1)
    for name in "abc":
        catalog.put(name, **tagged("x"))
        catalog.put(f"not-{name}")

    async with catalog.watching(filtering(tags=["x"]), cursor=Cursor("epoch", 1)) as watcher:
        messages = [await read(watcher) for _ in range(3)]

    assert [brief(message) for message in messages] == [[(REGISTERED, "b")], [(REGISTERED, "c")], []]
    assert [message.revision for message in messages] == [3, 5, 6]
    assert [cursor_of(message).revision for message in messages] == [3, 5, 6]


@pytest.mark.parametrize(
    ("cursor", "why"),
    [
        (Cursor("another", 6), "another epoch"),
        (Cursor("epoch", 2), "changes after revision 2 are no longer all kept"),
        (Cursor("epoch", 0), "no longer all kept"),
    ],
)
async def test_a_watch_that_cannot_go_on_without_a_gap_is_refused(cursor: Cursor, why: str) -> None:
    catalog = Catalog(history=3)
    for name in "abcdef":
        catalog.put(name)

    with pytest.raises(CursorExpired, match=why):
        await catalog.hub.open_watch(filtering(), cursor=cursor)

    assert catalog.hub.watchers == 0
    assert len(catalog.replica.interests) == 0


async def test_a_watch_cannot_go_on_from_before_a_resync() -> None:
    catalog = Catalog()
    catalog.put("a")
    catalog.resync(change(5, None, record("b")))

    with pytest.raises(CursorExpired):
        await catalog.hub.open_watch(filtering(), cursor=Cursor("another", 4))
    async with catalog.watching(cursor=Cursor("another", 5)) as watcher:
        assert brief(await read(watcher)) == []


async def test_a_cursor_of_a_process_that_is_ahead_waits_until_this_one_is_level() -> None:
    catalog = Catalog()
    joining = asyncio.create_task(catalog.hub.open_watch(filtering(), cursor=Cursor("epoch", 2)))
    for name in "abc":
        await asyncio.sleep(0)
        catalog.put(name)

    with await joining as watcher:
        catalog.put("d")
        seen = brief(await read(watcher)) + brief(await read(watcher))

    assert seen == [(REGISTERED, "c"), (REGISTERED, "d")]


async def test_a_cursor_that_this_process_never_reaches_is_refused() -> None:
    catalog = Catalog(cursor_wait_seconds=0.01)

    with pytest.raises(CursorExpired):
        await catalog.hub.open_watch(filtering(), cursor=Cursor("epoch", 9))


# Events.


async def test_an_event_tells_what_why_when_and_what_was_before() -> None:
    catalog = Catalog()
    healthy = {"health": {"status": HealthStatus.HEALTH_STATUS_HEALTHY}}
    catalog.put("a", **healthy)
    async with catalog.following() as watcher:
        catalog.put("a", health={"status": HealthStatus.HEALTH_STATUS_DEGRADED})
        after = catalog.replica.records["a"].message()
        message = await read(watcher)

    expected = Event(
        type=HEALTH_CHANGED,
        service=after,
        previous_health=HealthStatus.HEALTH_STATUS_HEALTHY,
        revision=2,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
    )
    expected.occurred_at.FromMilliseconds(2000)
    assert list(message.events) == [expected]


async def test_a_service_that_is_gone_is_told_with_its_last_state() -> None:
    catalog = Catalog()
    catalog.put("a", version="7.7.7", health={"status": HealthStatus.HEALTH_STATUS_UNHEALTHY})
    async with catalog.following() as watcher:
        last = catalog.replica.records["a"].message()
        catalog.delete("a")
        event = (await read(watcher)).events[0]

    assert (event.type, event.revision) == (UNREGISTERED, 2)
    assert event.service == last
    assert event.previous_health == HealthStatus.HEALTH_STATUS_UNHEALTHY


async def test_a_service_that_stops_matching_arrives_once_as_unmatched() -> None:
    catalog = Catalog()
    catalog.put("a", **tagged("x"))
    async with catalog.following(filtering(tags=["x"])) as watcher:
        catalog.put("a", **tagged("y"))
        catalog.put("a", **tagged("z"))
        catalog.delete("a")
        catalog.put("b", **tagged("x"))
        message = await read(watcher)

    assert brief(message) == [(UNMATCHED, "a"), (REGISTERED, "b")]
    assert list(message.events[0].service.metadata.tags) == ["y"]
    assert message.events[0].revision == 2


async def test_a_service_that_begins_to_match_arrives_as_what_happened_to_it() -> None:
    catalog = Catalog()
    catalog.put("a", **tagged("y"))
    async with catalog.following(filtering(tags=["x"])) as watcher:
        catalog.put("a", **tagged("x"))
        catalog.delete("a")
        message = await read(watcher)

    assert brief(message) == [(UPDATED, "a"), (UNREGISTERED, "a")]


async def test_only_the_kinds_asked_for_arrive_now_and_from_the_past() -> None:
    catalog = Catalog()
    types = [UNREGISTERED, UNMATCHED]

    def history() -> None:
        catalog.put("a", **tagged("x"))
        catalog.put("b", **tagged("x"))
        catalog.put("a", **tagged("y"))
        catalog.delete("b")

    async with catalog.following(filtering(tags=["x"]), types=types) as watcher:
        history()
        live = await read(watcher)
    async with catalog.watching(filtering(tags=["x"]), types=types, cursor=Cursor("epoch", 0)) as watcher:
        past = await read(watcher)

    assert brief(live) == brief(past) == [(UNMATCHED, "a"), (UNREGISTERED, "b")]


async def test_a_snapshot_comes_whatever_kinds_are_asked_for() -> None:
    catalog = Catalog()
    catalog.put("a")

    async with catalog.watching(types=[UNREGISTERED], snapshot=True) as watcher:
        message = await read(watcher)

    assert brief(message) == [(SNAPSHOT, "a")]


# Notices: events of no service.


async def test_every_watcher_gets_a_notice_once_whatever_its_filter() -> None:
    catalog = Catalog()
    catalog.put("a", **tagged("x"))
    filters: list[dict[str, Any]] = [
        {},
        {"tags": ["x"]},
        {"tags": ["y"]},
        {"name_pattern": "^nobody$"},
        {"group": "a"},
        {"health": [1]},
    ]
    async with AsyncExitStack() as stack:
        watchers = [
            await stack.enter_async_context(catalog.following(filtering(**fields)))
            for fields in [*filters, *filters]  # two of each: watchers with one filter share an interest
        ]
        catalog.notice("half of all services fail")
        messages = [await read(watcher) for watcher in watchers]

    expected = Event(
        type=REGISTRY_ERROR,
        revision=2,
        reason=EventReason.EVENT_REASON_HEALTH_CHECK,
        error="half of all services fail",
    )
    expected.occurred_at.FromMilliseconds(1000)
    for message in messages:
        assert list(message.events) == [expected]
        assert (message.revision, cursor_of(message)) == (2, Cursor("epoch", 2))


async def test_a_notice_is_told_in_its_place_among_changes() -> None:
    catalog = Catalog()
    async with catalog.following(filtering(tags=["x"])) as watcher:
        catalog.put("a", **tagged("x"))
        catalog.put("other")
        catalog.notice("trouble")
        catalog.delete("a")
        message = await read(watcher)

    assert brief(message) == [(REGISTERED, "a"), (REGISTRY_ERROR, ""), (UNREGISTERED, "a")]
    assert [event.revision for event in message.events] == [1, 3, 4]


@pytest.mark.parametrize(
    ("types", "wanted"),
    [([REGISTRY_ERROR], True), ([REGISTERED, REGISTRY_ERROR], True), ([REGISTERED], False), ([UNREGISTERED], False)],
)
async def test_a_notice_comes_to_those_who_ask_for_its_kind(types: list[int], wanted: bool) -> None:  # noqa: FBT001
    catalog = Catalog()
    async with catalog.following(types=types, bookmark_interval=0) as watcher:
        catalog.notice("trouble")
        live = await read(watcher)
    async with catalog.watching(types=types, cursor=Cursor("epoch", 0)) as watcher:
        past = await read(watcher)

    assert brief(live) == brief(past) == ([(REGISTRY_ERROR, "")] if wanted else [])
    assert cursor_of(live) == cursor_of(past) == Cursor("epoch", 1), "whoever does not want it has passed it by"


async def test_whoever_resumes_from_before_a_notice_gets_it_whatever_the_filter() -> None:
    catalog = Catalog()
    catalog.put("a", **tagged("x"))
    catalog.notice("trouble")
    catalog.put("b", **tagged("x"))

    for fields, names in (({"tags": ["x"]}, ["b"]), ({"tags": ["z"]}, [])):
        async with catalog.watching(filtering(**fields), cursor=Cursor("epoch", 1)) as watcher:
            message = await read(watcher)
        assert brief(message) == [(REGISTRY_ERROR, ""), *((REGISTERED, name) for name in names)]
        assert message.events[0].error == "trouble"
    async with catalog.watching(filtering(tags=["x"]), cursor=Cursor("epoch", 2)) as watcher:
        assert brief(await read(watcher)) == [(REGISTERED, "b")]


async def test_a_snapshot_has_no_notices() -> None:
    catalog = Catalog()
    catalog.put("a")
    catalog.notice("trouble")
    async with catalog.watching(snapshot=True) as watcher:
        state, complete = await read(watcher), await read(watcher)
        catalog.notice("more trouble")
        live = await read(watcher)

    assert brief(state) == [(SNAPSHOT, "a")]
    assert complete.snapshot_complete
    assert [event.error for event in live.events] == ["more trouble"]


async def test_a_notice_changes_nothing_about_what_is_registered() -> None:
    catalog = Catalog()
    catalog.put("a")
    before = dict(catalog.replica.records)
    catalog.notice("trouble")
    assert catalog.replica.records == before
    assert catalog.replica.revision == 2


async def test_whoever_is_too_slow_for_notices_is_ended_and_costs_the_others_nothing() -> None:
    catalog = Catalog(buffer_events=2)
    async with catalog.following() as slow, catalog.following(filtering(tags=["x"])) as quick:
        for i in range(5):
            catalog.notice(f"trouble {i}")
            assert [event.error for event in (await read(quick)).events] == [f"trouble {i}"]
        with pytest.raises(WatcherTooSlow):
            await read(slow)


# Messages.


async def test_changes_that_wait_share_a_message_whose_cursor_is_that_of_the_last() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        for name in "abc":
            catalog.put(name)
        message = await read(watcher)

    assert brief(message) == [(REGISTERED, name) for name in "abc"]
    assert (message.revision, cursor_of(message)) == (3, Cursor("epoch", 3))


async def test_a_full_message_ends_at_a_revision_and_its_cursor_leads_to_the_rest() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        catalog.put("a")
        limits = catalog.hub.limits._replace(message_bytes=2 * watcher._buffer_bytes - 1)
        catalog.hub.limits = watcher._limits = limits
        for name in "bcde":
            catalog.put(name)
        messages = [await read(watcher) for _ in range(3)]

    assert [brief(message) for message in messages] == [
        [(REGISTERED, name) for name in names] for names in ("ab", "cd", "e")
    ]
    assert [cursor_of(message).revision for message in messages] == [2, 4, 5]
    async with catalog.watching(cursor=cursor_of(messages[0])) as watcher:
        assert brief(await read(watcher)) == [(REGISTERED, "c"), (REGISTERED, "d")]


async def test_all_events_of_one_revision_are_in_one_message() -> None:
    catalog = Catalog(message_bytes=1)
    async with catalog.following() as watcher:
        catalog.put("before")
        difference = [change(9, None, record(name)) for name in "abc"]
        catalog.resync(*difference)
        catalog.put("after")
        messages = [await read(watcher) for _ in range(3)]

    assert [brief(message) for message in messages] == [
        [(REGISTERED, "before")],
        [(REGISTERED, "a"), (REGISTERED, "b"), (REGISTERED, "c")],
        [(REGISTERED, "after")],
    ]
    assert [cursor_of(message) for message in messages] == [
        Cursor("epoch", 1),
        Cursor("another", 9),
        Cursor("another", 10),
    ]


async def test_with_nothing_left_to_send_the_cursor_is_as_young_as_the_registry() -> None:
    catalog = Catalog(history=2)
    async with catalog.following(filtering(tags=["x"])) as watcher:
        catalog.put("a", **tagged("x"))
        for _ in range(5):
            catalog.put("other")
        message = await read(watcher)

    assert brief(message) == [(REGISTERED, "a")]
    async with catalog.watching(filtering(tags=["x"]), cursor=cursor_of(message)):
        pass  # not expired, although the history is short


async def test_a_quiet_stream_gets_bookmarks() -> None:
    catalog = Catalog()
    async with catalog.following(filtering(tags=["x"]), bookmark_interval=0.02) as watcher:
        first = await read(watcher)
        catalog.put("other")
        second = await read(watcher)

    assert first == WatchEventsResponse(cursor=first.cursor)
    assert second == WatchEventsResponse(cursor=second.cursor, revision=1)
    assert cursor_of(second) == Cursor("epoch", 1)


@pytest.mark.parametrize("buffer_events", [2, 1], ids=["they fit", "they are too many"])
async def test_a_bookmark_never_passes_by_events_that_come_as_it_falls_due(buffer_events: int) -> None:
    catalog = Catalog(buffer_events=buffer_events)
    interval = 0.02
    cursor = Cursor("epoch", 0)
    async with catalog.following(bookmark_interval=interval) as watcher:
        reading = asyncio.create_task(read(watcher))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        for name in "ab":
            loop.call_later(interval, catalog.put, name)
        time.sleep(2 * interval)  # noqa: ASYNC251 - so that all of it falls due in one turn of the loop, the bookmark first
        seen = list[tuple[int, str]]()
        try:
            message = await reading
            seen, cursor = brief(message), cursor_of(message)
        except WatcherTooSlow:
            pass

    async with catalog.watching(cursor=cursor) as watcher:
        seen += brief(await read(watcher))
    assert seen == [(REGISTERED, "a"), (REGISTERED, "b")]


# Bounds and ends.


@pytest.mark.parametrize("bounds", [{"buffer_events": 3}, {"buffer_bytes": 1000}], ids=["count", "bytes"])
async def test_a_watcher_that_falls_too_far_behind_is_ended_and_can_resume(bounds: dict[str, int]) -> None:
    catalog = Catalog(**bounds)
    async with catalog.watching() as watcher:
        cursor = cursor_of(await read(watcher))
        for i in range(50):
            catalog.put(f"s{i:02}")

        with pytest.raises(WatcherTooSlow, match="fell behind"):
            await read(watcher)
        with pytest.raises(WatcherTooSlow):  # and it stays so
            await read(watcher)
        # From then on it costs nothing, however long its stream hangs.
        assert not watcher._buffer
        assert (catalog.hub.watchers, len(catalog.replica.interests)) == (0, 0)

    async with catalog.watching(cursor=cursor) as watcher:
        assert brief(await read(watcher)) == [(REGISTERED, f"s{i:02}") for i in range(50)]


async def test_the_bounds_are_of_what_waits_and_not_of_what_was_read() -> None:
    catalog = Catalog(buffer_events=3, buffer_bytes=1000)
    async with catalog.following() as watcher:
        for i in range(20):
            catalog.put(f"s{i}", **tagged("x", description="d" * 200))
            catalog.put(f"t{i}")
            assert len((await read(watcher)).events) == 2

        assert watcher._buffer_bytes == 0


async def test_a_buffer_may_be_full() -> None:
    catalog = Catalog(buffer_events=3)
    async with catalog.following() as watcher:
        for name in "abc":
            catalog.put(name)
        assert len((await read(watcher)).events) == 3


async def test_a_watcher_that_reads_its_snapshot_too_slowly_is_ended_in_the_middle_of_it() -> None:
    catalog = Catalog(buffer_events=1, snapshot_message_bytes=1)
    for name in "abc":
        catalog.put(name)
    async with catalog.watching(snapshot=True) as watcher:
        await read(watcher)
        catalog.put("d")
        catalog.put("e")

        with pytest.raises(WatcherTooSlow):
            await read(watcher)


async def test_a_slow_watcher_costs_the_others_nothing() -> None:
    catalog = Catalog(buffer_events=2)
    async with catalog.following() as slow, catalog.following() as quick:
        seen = []
        for name in "abcdef":
            catalog.put(name)
            seen += brief(await read(quick))

        assert seen == [(REGISTERED, name) for name in "abcdef"]
        with pytest.raises(WatcherTooSlow):
            await read(slow)


async def test_draining_sends_what_waits_and_then_ends() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        catalog.put("a")
        catalog.hub.drain()
        catalog.put("b")  # too late

        message = await read(watcher)
        with pytest.raises(ShuttingDown):
            await read(watcher)

    assert brief(message) == [(REGISTERED, "a")]


async def test_the_last_cursor_of_a_drained_watch_is_good_to_resume_from() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        catalog.put("a")
        catalog.hub.drain()
        catalog.put("b")
        cursor = cursor_of(await read(watcher))

    elsewhere = WatchHub(catalog.replica, Discovery(catalog.replica), WatchLimits(10, 1000))
    with await elsewhere.open_watch(filtering(), cursor=cursor) as watcher:
        assert brief(await read(watcher)) == [(REGISTERED, "b")]


async def test_draining_lets_a_snapshot_end_and_wakes_who_waits() -> None:
    catalog = Catalog()
    catalog.put("a")
    async with catalog.following() as waiting, catalog.watching(snapshot=True) as opening:
        ending = asyncio.create_task(read(waiting))
        await asyncio.sleep(0)
        catalog.hub.drain()

        with pytest.raises(ShuttingDown):
            await ending
        assert brief(await read(opening)) == [(SNAPSHOT, "a")]
        assert (await read(opening)).snapshot_complete
        with pytest.raises(ShuttingDown):
            await read(opening)


async def test_nobody_joins_a_server_that_drains() -> None:
    catalog = Catalog()
    catalog.hub.drain()

    with pytest.raises(ShuttingDown):
        await catalog.hub.open_watch(filtering(), snapshot=True)

    assert len(catalog.replica.interests) == 0


async def test_starting_over_ends_every_watch_at_once_and_lets_new_ones_in() -> None:
    catalog = Catalog()
    async with catalog.following() as busy, catalog.following(filtering(tags=["x"])) as quiet:
        waiting = asyncio.create_task(read(quiet))
        await asyncio.sleep(0)
        catalog.put("a")
        catalog.hub.expire_all()

        for ended in (read(busy), waiting):
            with pytest.raises(CursorExpired, match="the store was replaced"):
                await ended

    async with catalog.watching(snapshot=True) as watcher:
        assert brief(await read(watcher)) == [(SNAPSHOT, "a")]


async def test_watchers_with_one_filter_share_an_interest_and_the_last_to_leave_frees_it() -> None:
    catalog = Catalog()
    async with catalog.following(filtering(tags=["x", "y"])):
        async with catalog.following(filtering(tags=["y", "x"])) as second:
            assert (catalog.hub.watchers, len(catalog.replica.interests)) == (2, 1)
            catalog.put("a", **tagged("x"))
            assert brief(await read(second)) == [(REGISTERED, "a")]
        assert (catalog.hub.watchers, len(catalog.replica.interests)) == (1, 1)

    assert (catalog.hub.watchers, len(catalog.replica.interests)) == (0, 0)
    assert not catalog.hub._groups


async def test_a_watcher_may_leave_twice_and_others_join_in_between() -> None:
    catalog = Catalog()
    gone = await catalog.hub.open_watch(filtering())
    with gone:
        pass
    async with catalog.following() as watcher:
        with gone:
            pass
        catalog.put("a")
        assert brief(await read(watcher)) == [(REGISTERED, "a")]


async def test_whoever_left_is_offered_nothing() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        pass
    catalog.put("a")

    assert not watcher._buffer


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_a_difference_is_published_up_to_a_size(extra: int, fits: bool) -> None:  # noqa: FBT001
    difference = [change(1, None, record("a")), change(1, record("b"), record("b"))]

    assert fits_one_message(difference, sum(each.size for each in difference) - extra) is fits


# All of it together.


class Client:
    """Keeps a copy of what matches, as an agent does: by a snapshot, by events, and by resuming after each break."""

    def __init__(self, catalog: Catalog, filter_: Filter) -> None:
        self._catalog = catalog
        self._filter = filter_
        self._cursor: Cursor | None = None
        self._complete = False
        self._watcher: Watcher | None = None
        self.copy: dict[str, bytes] = {}
        self.revisions: list[int] = []

    async def read(self) -> bool:
        """Takes one message in; tells whether that brought it level with the registry."""
        if self._watcher is None:
            await self._join()
        assert self._watcher is not None
        try:
            message = await read(self._watcher)
        except (WatcherTooSlow, CursorExpired) as error:
            self.leave(error)
            return False
        self._take(message)
        return self._complete and message.revision == self._catalog.replica.revision

    def leave(self, error: RegistryError | None = None) -> None:
        if self._watcher is not None:
            with self._watcher:
                self._watcher = None
        if isinstance(error, CursorExpired) or not self._complete:
            self._cursor = None

    async def _join(self) -> None:
        try:
            self._watcher = await self._begin()
        except CursorExpired:
            self._cursor = None
            self._watcher = await self._begin()
        if self._cursor is None:
            self.copy.clear()
            self.revisions.clear()
            self._complete = False

    async def _begin(self) -> Watcher:
        # A bookmark at once where nothing waits: no test waits for one.
        return await self._catalog.hub.open_watch(self._filter, cursor=self._cursor, snapshot=True, bookmark_interval=0)

    def _take(self, message: WatchEventsResponse) -> None:
        for event in message.events:
            if event.type in (UNREGISTERED, UNMATCHED):
                del self.copy[event.service.name]  # fails on one that was never told
            else:
                self.copy[event.service.name] = event.service.SerializeToString(deterministic=True)
            if event.type != SNAPSHOT:
                self.revisions.append(event.revision)
        self._cursor = cursor_of(message)
        self._complete = self._complete or message.snapshot_complete


def replace_all(catalog: Catalog) -> None:
    """The difference is large: watchers start over."""
    catalog.hub.expire_all()
    everyone = list(catalog.replica.records.values())
    position = Position(catalog.replica.position.epoch + "'", 2)
    catalog.replica.resync([change(2, each, None) for each in everyone[::2]], position)


NAMES = st.sampled_from("abcd")
TAGS = st.lists(st.sampled_from("xy"), unique=True)
Act = Callable[[Catalog, Client], object]
ACTS: st.SearchStrategy[Act] = st.one_of(
    st.tuples(NAMES, TAGS).map(lambda put: lambda catalog, _: catalog.put(put[0], **tagged(*put[1]))),
    NAMES.map(lambda name: lambda catalog, _: catalog.delete(name)),
    st.just(lambda _, client: client.read()),
    st.just(lambda _, client: client.leave()),
    st.just(lambda catalog, _: replace_all(catalog)),
)


@given(
    st.lists(ACTS, max_size=30),
    st.sampled_from([{}, {"tags": ["x"]}, {"name_pattern": "[ab]"}]),
    st.integers(1, 6),
    st.integers(1, 12),
)
async def test_a_client_that_resumes_after_every_break_misses_nothing_and_sees_nothing_twice(
    acts: Sequence[Act], fields: dict[str, Any], buffer_events: int, history: int
) -> None:
    catalog = Catalog(history=history, buffer_events=buffer_events, message_bytes=1, snapshot_message_bytes=1)
    filter_ = filtering(**fields)
    client = Client(catalog, filter_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery_module, "_SCAN_SLICE_RECORDS", 1)
        for act in acts:
            result = act(catalog, client)
            if asyncio.iscoroutine(result):
                await result
            assert client.revisions == sorted(set(client.revisions))
        while not await client.read():
            pass

    matching = {name: each for name, each in catalog.replica.records.items() if filter_.matches(each)}
    assert client.copy == {
        name: each.message().SerializeToString(deterministic=True) for name, each in matching.items()
    }
    client.leave()
    assert len(catalog.replica.interests) <= 1  # the kept query of the snapshot
