import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsResponse
from ossa.registry.v1.service_pb2 import HealthStatus, ServiceFilter
from ossa_common.cursors import Cursor, decode_cursor
from ossa_common.violations import Violation
from registry_server.catalog.change import Change
from registry_server.catalog.discovery import Discovery, DiscoveryLimits
from registry_server.catalog.replica import Replica
from registry_server.errors import CursorExpired, RegistryError, ShuttingDown, WatcherTooSlow
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record
from registry_server.store import Position
from registry_server.watch import Watcher, WatchHub, WatchLimits, hub
from registry_server.watch.messages import fits_one_message
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
    """A replica changed by the test, and a hub over it."""

    def __init__(
        self,
        *,
        history: int = 1000,
        buffer_events: int = 1000,
        buffer_bytes: int = 1 << 20,
        slice_seconds: float = 10.0,
        **limits: Any,
    ) -> None:
        self.replica = Replica(history)
        self.replica.start_at([], Position("epoch", 0))
        discovery = Discovery(self.replica, DiscoveryLimits(slice_seconds=slice_seconds))
        watch_limits = WatchLimits(buffer_events, buffer_bytes, slice_seconds=slice_seconds, **limits)
        self.hub = WatchHub(self.replica, discovery, watch_limits)

    def put_service(self, name: str, **fields: Any) -> None:
        revision = self.replica.revision + 1
        service = small_service(name, **{"group": name, "revision": revision, **fields})
        service.updated_at.FromMilliseconds(revision * 1000)
        self._apply(Record(service.SerializeToString()), name)

    def delete_service(self, name: str) -> None:
        self._apply(None, name)

    def publish_notice(self, error: str) -> None:
        """Publish an error of the registry itself."""
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
        with await self.hub.open_watch(filter_ or compiled(), **options) as watcher:
            yield watcher

    @asynccontextmanager
    async def following(self, filter_: Filter | None = None, **options: Any) -> AsyncIterator[Watcher]:
        """Open a watch and read its first message."""
        async with self.watching(filter_, **options) as watcher:
            await read_message(watcher)
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


def compiled(**fields: Any) -> Filter:
    violations = list[Violation]()
    filter_ = compile_filter(ServiceFilter(**fields), "filter", violations)
    assert not violations
    return filter_


def tagged(*tags: str, **fields: Any) -> dict[str, Any]:
    return {"metadata": {"tags": tags, **fields}}


async def read_message(watcher: Watcher) -> WatchEventsResponse:
    async with asyncio.timeout(TIMEOUT):
        return WatchEventsResponse.FromString((await anext(watcher)).wire)


def types_and_names(message: WatchEventsResponse) -> list[tuple[int, str]]:
    return [(event.type, event.service.name) for event in message.events]


def cursor_of(message: WatchEventsResponse) -> Cursor:
    return decode_cursor(message.cursor)


# Starting a watch.


async def test_watch_from_now_starts_with_its_position() -> None:
    catalog = Catalog()
    catalog.put_service("a")

    async with catalog.watching() as watcher:
        message = await read_message(watcher)

    assert message == WatchEventsResponse(cursor=message.cursor, revision=1)
    assert cursor_of(message) == Cursor("epoch", 1)


async def test_snapshot_lists_every_match_by_name_and_then_completes() -> None:
    catalog = Catalog()
    for name in "cab":
        catalog.put_service(name, **tagged("x"))
    catalog.put_service("other")

    async with catalog.watching(compiled(tags=["x"]), snapshot=True) as watcher:
        state, complete = await read_message(watcher), await read_message(watcher)

    assert types_and_names(state) == [(SNAPSHOT, "a"), (SNAPSHOT, "b"), (SNAPSHOT, "c")]
    assert complete == WatchEventsResponse(cursor=complete.cursor, revision=4, snapshot_complete=True)
    first = state.events[0]
    assert first.service == catalog.replica.records["a"].message()
    assert (first.revision, first.occurred_at) == (2, first.service.updated_at)
    assert (first.previous_health, first.reason) == (0, 0)


async def test_empty_snapshot_is_complete_at_once() -> None:
    async with Catalog().watching(snapshot=True) as watcher:
        message = await read_message(watcher)

    assert message.snapshot_complete
    assert not message.events


async def test_changes_during_a_snapshot_follow_it() -> None:
    catalog = Catalog(snapshot_message_bytes=1)
    for name in "ab":
        catalog.put_service(name)

    async with catalog.watching(snapshot=True) as watcher:
        messages = [await read_message(watcher)]
        catalog.delete_service("b")
        catalog.put_service("c")
        messages += [await read_message(watcher) for _ in range(3)]

    assert [types_and_names(message) for message in messages] == [
        [(SNAPSHOT, "a")],
        [(SNAPSHOT, "b")],
        [],
        [(UNREGISTERED, "b"), (REGISTERED, "c")],
    ]
    assert [message.snapshot_complete for message in messages] == [False, False, True, False]
    assert [message.revision for message in messages] == [2, 2, 2, 4]


async def test_cursor_of_an_unfinished_snapshot_cannot_be_resumed() -> None:
    catalog = Catalog(snapshot_message_bytes=1)
    for name in "ab":
        catalog.put_service(name)

    async with catalog.watching(snapshot=True) as watcher:
        cursors = [cursor_of(await read_message(watcher)) for _ in range(3)]

    for cursor in cursors[:2]:
        with pytest.raises(CursorExpired, match="unfinished snapshot"):
            await catalog.hub.open_watch(compiled(), cursor=cursor)
    async with catalog.watching(cursor=cursors[2]) as watcher:
        assert types_and_names(await read_message(watcher)) == []


async def test_snapshot_from_a_long_scan_has_a_single_revision() -> None:
    catalog = Catalog(slice_seconds=0)
    for name in "abcd":
        catalog.put_service(name)
    opening = asyncio.create_task(catalog.hub.open_watch(compiled(name_pattern="."), snapshot=True))
    await asyncio.sleep(0)
    catalog.delete_service("b")
    catalog.put_service("e")

    with await opening as watcher:
        catalog.put_service("f")
        state, complete, live = [await read_message(watcher) for _ in range(3)]

    assert types_and_names(state) == [(SNAPSHOT, name) for name in "acde"]
    assert complete.revision == 6
    assert types_and_names(live) == [(REGISTERED, "f")]


async def test_cursor_takes_precedence_over_a_snapshot() -> None:
    catalog = Catalog()
    catalog.put_service("a")

    async with catalog.watching(cursor=Cursor("epoch", 0), snapshot=True) as watcher:
        message = await read_message(watcher)

    assert types_and_names(message) == [(REGISTERED, "a")]


# Cursors.


async def test_watch_resumes_right_after_its_cursor() -> None:
    catalog = Catalog()
    for name in "abc":
        catalog.put_service(name)

    async with catalog.watching(cursor=Cursor("epoch", 1)) as watcher:
        catalog.put_service("d")
        past, live = await read_message(watcher), await read_message(watcher)

    assert types_and_names(past) == [(REGISTERED, "b"), (REGISTERED, "c")]
    assert cursor_of(past) == Cursor("epoch", 3)
    assert types_and_names(live) == [(REGISTERED, "d")]


async def test_replayed_messages_are_bounded_and_each_has_its_cursor() -> None:
    catalog = Catalog(message_bytes=1)
    for name in "abc":
        catalog.put_service(name, **tagged("x"))
        catalog.put_service(f"not-{name}")

    async with catalog.watching(compiled(tags=["x"]), cursor=Cursor("epoch", 1)) as watcher:
        messages = [await read_message(watcher) for _ in range(3)]

    assert [types_and_names(message) for message in messages] == [[(REGISTERED, "b")], [(REGISTERED, "c")], []]
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
async def test_watch_that_would_have_a_gap_is_refused(cursor: Cursor, why: str) -> None:
    catalog = Catalog(history=3)
    for name in "abcdef":
        catalog.put_service(name)

    with pytest.raises(CursorExpired, match=why):
        await catalog.hub.open_watch(compiled(), cursor=cursor)

    assert catalog.hub.watchers == 0
    assert len(catalog.replica.anchors) == 0


async def test_cursor_from_before_a_resync_is_refused() -> None:
    catalog = Catalog()
    catalog.put_service("a")
    catalog.resync(change(5, None, record("b")))

    with pytest.raises(CursorExpired):
        await catalog.hub.open_watch(compiled(), cursor=Cursor("another", 4))
    async with catalog.watching(cursor=Cursor("another", 5)) as watcher:
        assert types_and_names(await read_message(watcher)) == []


async def test_cursor_from_a_process_ahead_waits_for_this_replica() -> None:
    catalog = Catalog()
    opening = asyncio.create_task(catalog.hub.open_watch(compiled(), cursor=Cursor("epoch", 2)))
    for name in "abc":
        await asyncio.sleep(0)
        catalog.put_service(name)

    with await opening as watcher:
        catalog.put_service("d")
        seen = types_and_names(await read_message(watcher)) + types_and_names(await read_message(watcher))

    assert seen == [(REGISTERED, "c"), (REGISTERED, "d")]


async def test_cursor_that_is_not_reached_in_time_is_refused() -> None:
    catalog = Catalog(cursor_wait_seconds=0.01)

    with pytest.raises(CursorExpired):
        await catalog.hub.open_watch(compiled(), cursor=Cursor("epoch", 9))


# Events.


async def test_event_has_type_reason_time_and_previous_health() -> None:
    catalog = Catalog()
    healthy = {"health": {"status": HealthStatus.HEALTH_STATUS_HEALTHY}}
    catalog.put_service("a", **healthy)
    async with catalog.following() as watcher:
        catalog.put_service("a", health={"status": HealthStatus.HEALTH_STATUS_DEGRADED})
        after = catalog.replica.records["a"].message()
        message = await read_message(watcher)

    expected = Event(
        type=HEALTH_CHANGED,
        service=after,
        previous_health=HealthStatus.HEALTH_STATUS_HEALTHY,
        revision=2,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
    )
    expected.occurred_at.FromMilliseconds(2000)
    assert list(message.events) == [expected]


async def test_unregistered_event_contains_the_last_state() -> None:
    catalog = Catalog()
    catalog.put_service("a", version="7.7.7", health={"status": HealthStatus.HEALTH_STATUS_UNHEALTHY})
    async with catalog.following() as watcher:
        last = catalog.replica.records["a"].message()
        catalog.delete_service("a")
        event = (await read_message(watcher)).events[0]

    assert (event.type, event.revision) == (UNREGISTERED, 2)
    assert event.service == last
    assert event.previous_health == HealthStatus.HEALTH_STATUS_UNHEALTHY


async def test_service_that_no_longer_matches_is_reported_once() -> None:
    catalog = Catalog()
    catalog.put_service("a", **tagged("x"))
    async with catalog.following(compiled(tags=["x"])) as watcher:
        catalog.put_service("a", **tagged("y"))
        catalog.put_service("a", **tagged("z"))
        catalog.delete_service("a")
        catalog.put_service("b", **tagged("x"))
        message = await read_message(watcher)

    assert types_and_names(message) == [(UNMATCHED, "a"), (REGISTERED, "b")]
    assert list(message.events[0].service.metadata.tags) == ["y"]
    assert message.events[0].revision == 2


async def test_service_that_starts_to_match_keeps_its_event_type() -> None:
    catalog = Catalog()
    catalog.put_service("a", **tagged("y"))
    async with catalog.following(compiled(tags=["x"])) as watcher:
        catalog.put_service("a", **tagged("x"))
        catalog.delete_service("a")
        message = await read_message(watcher)

    assert types_and_names(message) == [(UPDATED, "a"), (UNREGISTERED, "a")]


async def test_only_requested_types_are_sent_live_and_replayed() -> None:
    catalog = Catalog()
    types = [UNREGISTERED, UNMATCHED]

    def make_changes() -> None:
        catalog.put_service("a", **tagged("x"))
        catalog.put_service("b", **tagged("x"))
        catalog.put_service("a", **tagged("y"))
        catalog.delete_service("b")

    async with catalog.following(compiled(tags=["x"]), types=types) as watcher:
        make_changes()
        live = await read_message(watcher)
    async with catalog.watching(compiled(tags=["x"]), types=types, cursor=Cursor("epoch", 0)) as watcher:
        past = await read_message(watcher)

    assert types_and_names(live) == types_and_names(past) == [(UNMATCHED, "a"), (UNREGISTERED, "b")]


async def test_snapshot_is_sent_regardless_of_the_requested_types() -> None:
    catalog = Catalog()
    catalog.put_service("a")

    async with catalog.watching(types=[UNREGISTERED], snapshot=True) as watcher:
        message = await read_message(watcher)

    assert types_and_names(message) == [(SNAPSHOT, "a")]


# Notices: events without a service.


async def test_every_watcher_receives_a_notice_once() -> None:
    catalog = Catalog()
    catalog.put_service("a", **tagged("x"))
    filters: list[dict[str, Any]] = [
        {},
        {"tags": ["x"]},
        {"tags": ["y"]},
        {"name_pattern": "^none$"},
        {"group": "a"},
        {"health": [1]},
    ]
    async with AsyncExitStack() as stack:
        watchers = [
            await stack.enter_async_context(catalog.following(compiled(**fields)))
            for fields in [*filters, *filters]  # two of each: watchers with one filter share an interest
        ]
        catalog.publish_notice("half of all services fail")
        messages = [await read_message(watcher) for watcher in watchers]

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


async def test_notice_is_ordered_among_changes() -> None:
    catalog = Catalog()
    async with catalog.following(compiled(tags=["x"])) as watcher:
        catalog.put_service("a", **tagged("x"))
        catalog.put_service("other")
        catalog.publish_notice("trouble")
        catalog.delete_service("a")
        message = await read_message(watcher)

    assert types_and_names(message) == [(REGISTERED, "a"), (REGISTRY_ERROR, ""), (UNREGISTERED, "a")]
    assert [event.revision for event in message.events] == [1, 3, 4]


@pytest.mark.parametrize(
    ("types", "expected"),
    [([REGISTRY_ERROR], True), ([REGISTERED, REGISTRY_ERROR], True), ([REGISTERED], False), ([UNREGISTERED], False)],
)
async def test_notice_is_sent_only_if_its_type_is_requested(types: list[int], expected: bool) -> None:  # noqa: FBT001
    catalog = Catalog()
    async with catalog.following(types=types, bookmark_interval=0) as watcher:
        catalog.publish_notice("trouble")
        live = await read_message(watcher)
    async with catalog.watching(types=types, cursor=Cursor("epoch", 0)) as watcher:
        past = await read_message(watcher)

    assert types_and_names(live) == types_and_names(past) == ([(REGISTRY_ERROR, "")] if expected else [])
    assert cursor_of(live) == cursor_of(past) == Cursor("epoch", 1), (
        "the cursor advances past notices that are filtered out"
    )


async def test_notice_is_replayed_regardless_of_the_filter() -> None:
    catalog = Catalog()
    catalog.put_service("a", **tagged("x"))
    catalog.publish_notice("trouble")
    catalog.put_service("b", **tagged("x"))

    for fields, names in (({"tags": ["x"]}, ["b"]), ({"tags": ["z"]}, [])):
        async with catalog.watching(compiled(**fields), cursor=Cursor("epoch", 1)) as watcher:
            message = await read_message(watcher)
        assert types_and_names(message) == [(REGISTRY_ERROR, ""), *((REGISTERED, name) for name in names)]
        assert message.events[0].error == "trouble"
    async with catalog.watching(compiled(tags=["x"]), cursor=Cursor("epoch", 2)) as watcher:
        assert types_and_names(await read_message(watcher)) == [(REGISTERED, "b")]


async def test_snapshot_contains_no_notices() -> None:
    catalog = Catalog()
    catalog.put_service("a")
    catalog.publish_notice("trouble")
    async with catalog.watching(snapshot=True) as watcher:
        state, complete = await read_message(watcher), await read_message(watcher)
        catalog.publish_notice("more trouble")
        live = await read_message(watcher)

    assert types_and_names(state) == [(SNAPSHOT, "a")]
    assert complete.snapshot_complete
    assert [event.error for event in live.events] == ["more trouble"]


async def test_notice_changes_no_record() -> None:
    catalog = Catalog()
    catalog.put_service("a")
    before = dict(catalog.replica.records)
    catalog.publish_notice("trouble")
    assert catalog.replica.records == before
    assert catalog.replica.revision == 2


async def test_watcher_too_slow_for_notices_is_ended_alone() -> None:
    catalog = Catalog(buffer_events=2)
    async with catalog.following() as slow, catalog.following(compiled(tags=["x"])) as quick:
        for i in range(5):
            catalog.publish_notice(f"trouble {i}")
            assert [event.error for event in (await read_message(quick)).events] == [f"trouble {i}"]
        with pytest.raises(WatcherTooSlow):
            await read_message(slow)


# Messages.


async def test_buffered_changes_share_a_message_with_the_last_cursor() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        for name in "abc":
            catalog.put_service(name)
        message = await read_message(watcher)

    assert types_and_names(message) == [(REGISTERED, name) for name in "abc"]
    assert (message.revision, cursor_of(message)) == (3, Cursor("epoch", 3))


async def test_full_message_ends_at_a_revision_and_can_be_resumed() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        catalog.put_service("a")
        limits = catalog.hub.limits._replace(message_bytes=2 * watcher._buffer_bytes - 1)
        catalog.hub.limits = watcher._limits = limits
        for name in "bcde":
            catalog.put_service(name)
        messages = [await read_message(watcher) for _ in range(3)]

    assert [types_and_names(message) for message in messages] == [
        [(REGISTERED, name) for name in names] for names in ("ab", "cd", "e")
    ]
    assert [cursor_of(message).revision for message in messages] == [2, 4, 5]
    async with catalog.watching(cursor=cursor_of(messages[0])) as watcher:
        assert types_and_names(await read_message(watcher)) == [(REGISTERED, "c"), (REGISTERED, "d")]


async def test_events_of_one_revision_are_in_one_message() -> None:
    catalog = Catalog(message_bytes=1)
    async with catalog.following() as watcher:
        catalog.put_service("before")
        difference = [change(9, None, record(name)) for name in "abc"]
        catalog.resync(*difference)
        catalog.put_service("after")
        messages = [await read_message(watcher) for _ in range(3)]

    assert [types_and_names(message) for message in messages] == [
        [(REGISTERED, "before")],
        [(REGISTERED, "a"), (REGISTERED, "b"), (REGISTERED, "c")],
        [(REGISTERED, "after")],
    ]
    assert [cursor_of(message) for message in messages] == [
        Cursor("epoch", 1),
        Cursor("another", 9),
        Cursor("another", 10),
    ]


async def test_cursor_advances_past_unmatched_changes() -> None:
    catalog = Catalog(history=2)
    async with catalog.following(compiled(tags=["x"])) as watcher:
        catalog.put_service("a", **tagged("x"))
        for _ in range(5):
            catalog.put_service("other")
        message = await read_message(watcher)

    assert types_and_names(message) == [(REGISTERED, "a")]
    async with catalog.watching(compiled(tags=["x"]), cursor=cursor_of(message)):
        pass  # not expired, although the history keeps only two changes


async def test_quiet_stream_receives_bookmarks() -> None:
    catalog = Catalog()
    async with catalog.following(compiled(tags=["x"]), bookmark_interval=0.02) as watcher:
        first = await read_message(watcher)
        catalog.put_service("other")
        second = await read_message(watcher)

    assert first == WatchEventsResponse(cursor=first.cursor)
    assert second == WatchEventsResponse(cursor=second.cursor, revision=1)
    assert cursor_of(second) == Cursor("epoch", 1)


@pytest.mark.parametrize("buffer_events", [2, 1], ids=["within the buffer", "beyond the buffer"])
async def test_bookmark_never_skips_events_that_arrive_when_it_is_due(buffer_events: int) -> None:
    catalog = Catalog(buffer_events=buffer_events)
    interval = 0.02
    cursor = Cursor("epoch", 0)
    async with catalog.following(bookmark_interval=interval) as watcher:
        reading = asyncio.create_task(read_message(watcher))
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        for name in "ab":
            loop.call_later(interval, catalog.put_service, name)
        time.sleep(2 * interval)  # noqa: ASYNC251 - all timers are then due in one turn of the loop, the bookmark first
        seen = list[tuple[int, str]]()
        try:
            message = await reading
            seen, cursor = types_and_names(message), cursor_of(message)
        except WatcherTooSlow:
            pass

    async with catalog.watching(cursor=cursor) as watcher:
        seen += types_and_names(await read_message(watcher))
    assert seen == [(REGISTERED, "a"), (REGISTERED, "b")]


async def test_batch_has_the_values_of_its_message() -> None:
    catalog = Catalog(snapshot_message_bytes=1)
    catalog.put_service("a")
    async with catalog.watching(snapshot=True) as watcher:
        batches = [await anext(watcher) for _ in range(2)]
        catalog.publish_notice("trouble")
        batches.append(await anext(watcher))

    for batch in batches:
        message = WatchEventsResponse.FromString(batch.wire)
        assert [event.type for event in batch.events] == [event.type for event in message.events]
        assert (batch.cursor, batch.revision) == (cursor_of(message), message.revision)
        assert batch.snapshot_complete == message.snapshot_complete
    assert [batch.resumable for batch in batches] == [False, True, True]
    assert [batch.snapshot_complete for batch in batches] == [False, True, False]


async def test_watchers_that_send_the_same_events_share_a_batch() -> None:
    catalog = Catalog()
    async with (
        catalog.following() as first,
        catalog.following(compiled(tags=["x"])) as second,
        catalog.following(types=[UNREGISTERED], bookmark_interval=0) as third,
    ):
        catalog.put_service("a", **tagged("x"))
        batches = [await anext(watcher) for watcher in (first, second, third)]

    assert batches[0] is batches[1]
    assert batches[2] is not batches[0]


# Limits and ends.


@pytest.mark.parametrize("limits", [{"buffer_events": 3}, {"buffer_bytes": 1000}], ids=["count", "bytes"])
async def test_watcher_that_falls_behind_is_ended_and_can_resume(limits: dict[str, int]) -> None:
    catalog = Catalog(**limits)
    async with catalog.watching() as watcher:
        cursor = cursor_of(await read_message(watcher))
        for i in range(50):
            catalog.put_service(f"s{i:02}")

        with pytest.raises(WatcherTooSlow, match="fell behind"):
            await read_message(watcher)
        with pytest.raises(WatcherTooSlow):  # every later read fails the same way
            await read_message(watcher)
        # It holds no resources afterwards, even if its stream stays blocked.
        assert not watcher._buffer
        assert (catalog.hub.watchers, len(catalog.replica.anchors)) == (0, 0)

    async with catalog.watching(cursor=cursor) as watcher:
        assert types_and_names(await read_message(watcher)) == [(REGISTERED, f"s{i:02}") for i in range(50)]


async def test_single_event_may_be_larger_than_the_buffer() -> None:
    catalog = Catalog(buffer_bytes=1000)
    async with catalog.following() as watcher:
        catalog.put_service("s", **tagged("x", description="d" * 2000))
        assert len((await read_message(watcher)).events) == 1


async def test_buffer_limits_do_not_count_events_already_read() -> None:
    catalog = Catalog(buffer_events=3, buffer_bytes=1000)
    async with catalog.following() as watcher:
        for i in range(20):
            catalog.put_service(f"s{i}", **tagged("x", description="d" * 200))
            catalog.put_service(f"t{i}")
            assert len((await read_message(watcher)).events) == 2

        assert watcher._buffer_bytes == 0


async def test_exactly_full_buffer_is_allowed() -> None:
    catalog = Catalog(buffer_events=3)
    async with catalog.following() as watcher:
        for name in "abc":
            catalog.put_service(name)
        assert len((await read_message(watcher)).events) == 3


async def test_slow_snapshot_reader_is_ended_mid_snapshot() -> None:
    catalog = Catalog(buffer_events=1, snapshot_message_bytes=1)
    for name in "abc":
        catalog.put_service(name)
    async with catalog.watching(snapshot=True) as watcher:
        await read_message(watcher)
        catalog.put_service("d")
        catalog.put_service("e")

        with pytest.raises(WatcherTooSlow):
            await read_message(watcher)


async def test_buffered_event_costs_each_watcher_no_more_than_a_reference() -> None:
    async def traced_bytes(watchers: int, events: int = 500) -> int:
        catalog = Catalog()
        async with AsyncExitStack() as stack:
            for _ in range(watchers):
                await stack.enter_async_context(catalog.following())
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            for i in range(events):
                catalog.put_service(f"a{i}")
            gc.collect()
            return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        await traced_bytes(1)  # fills caches
        more = await traced_bytes(101) - await traced_bytes(1)
    finally:
        tracemalloc.stop()
    assert more < 100 * 500 * 16


async def test_slow_watcher_does_not_affect_others() -> None:
    catalog = Catalog(buffer_events=2)
    async with catalog.following() as slow, catalog.following() as quick:
        seen = []
        for name in "abcdef":
            catalog.put_service(name)
            seen += types_and_names(await read_message(quick))

        assert seen == [(REGISTERED, name) for name in "abcdef"]
        with pytest.raises(WatcherTooSlow):
            await read_message(slow)


async def test_drain_sends_buffered_events_and_then_ends() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        catalog.put_service("a")
        catalog.hub.drain()
        catalog.put_service("b")  # not sent: the watch has ended

        message = await read_message(watcher)
        with pytest.raises(ShuttingDown):
            await read_message(watcher)

    assert types_and_names(message) == [(REGISTERED, "a")]


async def test_last_cursor_of_a_drained_watch_can_be_resumed() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        catalog.put_service("a")
        catalog.hub.drain()
        catalog.put_service("b")
        cursor = cursor_of(await read_message(watcher))

    other_hub = WatchHub(catalog.replica, Discovery(catalog.replica), WatchLimits(10, 1000))
    with await other_hub.open_watch(compiled(), cursor=cursor) as watcher:
        assert types_and_names(await read_message(watcher)) == [(REGISTERED, "b")]


async def test_drain_completes_snapshots_and_wakes_waiting_watchers() -> None:
    catalog = Catalog()
    catalog.put_service("a")
    async with catalog.following() as waiting, catalog.watching(snapshot=True) as opening:
        ending = asyncio.create_task(read_message(waiting))
        await asyncio.sleep(0)
        catalog.hub.drain()

        with pytest.raises(ShuttingDown):
            await ending
        assert types_and_names(await read_message(opening)) == [(SNAPSHOT, "a")]
        assert (await read_message(opening)).snapshot_complete
        with pytest.raises(ShuttingDown):
            await read_message(opening)


async def test_draining_hub_refuses_new_watches() -> None:
    catalog = Catalog()
    catalog.hub.drain()

    with pytest.raises(ShuttingDown):
        await catalog.hub.open_watch(compiled(), snapshot=True)

    assert len(catalog.replica.anchors) == 0


async def test_expire_all_ends_every_watch_and_admits_new_ones() -> None:
    catalog = Catalog()
    async with catalog.following() as busy, catalog.following(compiled(tags=["x"])) as quiet:
        waiting = asyncio.create_task(read_message(quiet))
        await asyncio.sleep(0)
        catalog.put_service("a")
        catalog.hub.expire_all()

        for ended in (read_message(busy), waiting):
            with pytest.raises(CursorExpired, match="the store was replaced"):
                await ended

    async with catalog.watching(snapshot=True) as watcher:
        assert types_and_names(await read_message(watcher)) == [(SNAPSHOT, "a")]


async def test_watchers_with_equal_filters_share_one_group() -> None:
    catalog = Catalog()
    async with catalog.following(compiled(tags=["x", "y"])):
        async with catalog.following(compiled(tags=["y", "x"])) as second:
            assert (catalog.hub.watchers, len(catalog.hub._joinable)) == (2, 1)
            catalog.put_service("a", **tagged("x"))
            assert types_and_names(await read_message(second)) == [(REGISTERED, "a")]
        assert (catalog.hub.watchers, len(catalog.hub._joinable)) == (1, 1)

    assert (catalog.hub.watchers, len(catalog.replica.anchors)) == (0, 0)
    assert not catalog.hub._joinable


async def test_closing_a_watcher_twice_does_not_affect_others() -> None:
    catalog = Catalog()
    closed = await catalog.hub.open_watch(compiled())
    with closed:
        pass
    async with catalog.following() as watcher:
        with closed:
            pass
        catalog.put_service("a")
        assert types_and_names(await read_message(watcher)) == [(REGISTERED, "a")]


async def test_closed_watcher_is_offered_no_events() -> None:
    catalog = Catalog()
    async with catalog.following() as watcher:
        pass
    catalog.put_service("a")

    assert not watcher._buffer


@pytest.mark.parametrize(("extra", "fits"), [(0, True), (1, False)])
def test_resync_difference_fits_up_to_the_size_limit(extra: int, fits: bool) -> None:  # noqa: FBT001
    difference = [change(1, None, record("a")), change(1, record("b"), record("b"))]

    assert fits_one_message(difference, sum(each.size for each in difference) - extra) is fits


# Matching in slices. Without any time for a slice, a change is matched for one group in a turn of the event loop.


async def read_all(watcher: Watcher, revision: int) -> list[WatchEventsResponse]:
    """Read messages up to a revision."""
    messages = [await read_message(watcher)]
    while messages[-1].revision < revision:
        messages.append(await read_message(watcher))
    return messages


async def test_slices_keep_all_events_in_order_and_cursors_behind_them() -> None:
    catalog = Catalog(slice_seconds=0)
    filters: list[dict[str, Any]] = [{}, {"name_pattern": "[ab]"}, {"tags": ["x"]}, {"group": "c"}]
    async with AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(catalog.following(compiled(**fields))) for fields in filters]
        for i in range(20):
            catalog.put_service("abcd"[i % 4], **tagged("xy"[i % 2]))
            if i % 7 == 0:
                catalog.publish_notice("trouble")
        newest = catalog.replica.revision
        # A bookmark gives watchers without further events the newest position.
        catalog.publish_notice("end")
        received = [await read_all(watcher, newest + 1) for watcher in watchers]
        expected = []
        for fields in filters:
            async with catalog.watching(compiled(**fields), cursor=Cursor("epoch", 0)) as watcher:
                expected.append([event for message in await read_all(watcher, newest + 1) for event in message.events])

    for messages, events in zip(received, expected, strict=True):
        assert [event for message in messages for event in message.events] == events
        for message in messages:
            assert all(event.revision <= message.revision for event in message.events)


async def test_bookmark_does_not_overtake_changes_that_are_not_matched_yet() -> None:
    catalog = Catalog(slice_seconds=0)
    async with AsyncExitStack() as stack:
        watchers = [
            await stack.enter_async_context(catalog.following(compiled(name_pattern=f"none-{i}"), bookmark_interval=0))
            for i in range(50)
        ]
        catalog.put_service("a")  # matched for one group in this turn, and for the others in later ones
        bookmark = await read_message(watchers[-1])

    assert (types_and_names(bookmark), cursor_of(bookmark)) == ([], Cursor("epoch", 0))


async def test_watcher_that_joins_while_its_filter_is_behind_receives_no_earlier_event() -> None:
    catalog = Catalog(slice_seconds=0)
    async with catalog.following() as early, catalog.following(compiled(tags=["x"])):
        for name in "abc":
            catalog.put_service(name, **tagged("x"))
        async with catalog.watching(snapshot=True) as late:
            opening = [await read_message(late), await read_message(late)]
            catalog.put_service("d")
            live = await read_all(late, 4)
            seen = await read_all(early, 4)

    assert [types_and_names(message) for message in opening] == [[(SNAPSHOT, name) for name in "abc"], []]
    assert [each for message in live for each in types_and_names(message)] == [(REGISTERED, "d")]
    assert [each for message in seen for each in types_and_names(message)] == [(REGISTERED, name) for name in "abcd"]


async def test_resync_matched_in_slices_is_one_message() -> None:
    catalog = Catalog(slice_seconds=0)
    async with catalog.following() as watcher, catalog.following(compiled(name_pattern=".")):
        catalog.put_service("before")
        catalog.resync(*(change(9, None, record(name)) for name in "abc"))
        catalog.put_service("after")
        messages = await read_all(watcher, 10)

    by_revision = [{event.revision for event in message.events} for message in messages]
    assert [each for message in messages for each in types_and_names(message)] == [
        (REGISTERED, name) for name in ("before", "a", "b", "c", "after")
    ]
    assert sum(9 in revisions for revisions in by_revision) == 1
    assert [cursor_of(message).epoch for message in messages if message.revision >= 9] == ["another"] * len(
        [message for message in messages if message.revision >= 9]
    )


@pytest.mark.parametrize("limits", [{"backlog_changes": 8}, {"backlog_bytes": 8 * 1024}], ids=["count", "bytes"])
async def test_watch_whose_matching_falls_too_far_behind_is_ended(limits: dict[str, int]) -> None:
    catalog = Catalog(slice_seconds=0, **limits)
    async with catalog.following() as watcher, catalog.following(compiled(name_pattern=".")) as other:
        for i in range(40):
            catalog.put_service(f"s{i:02}")

        for each in (watcher, other):
            with pytest.raises(WatcherTooSlow):
                await read_all(each, 40)
        assert catalog.hub.watchers == 0

    async with catalog.watching(cursor=Cursor("epoch", 0)) as watcher:
        assert len((await read_message(watcher)).events) == 40
    assert len(catalog.replica.anchors) == 0


async def test_caller_with_many_filters_does_not_delay_another(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(slice_seconds=0)
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(catalog.following(compiled(name_pattern=f"s|{i}"))) for i in range(200)]
        monkeypatch.setattr(hub, "current_caller_key", lambda: ("api-key", "another"))
        single = await stack.enter_async_context(catalog.following(compiled(name_pattern="s")))
        for i in range(5):
            catalog.put_service(f"s{i}")

        await read_all(single, 5)

        assert sum(watcher._group.position.revision for watcher in many) < 50


async def test_replay_from_a_cursor_runs_in_slices_and_includes_later_changes() -> None:
    catalog = Catalog(slice_seconds=0)
    for i in range(20):
        catalog.put_service(f"s{i:02}")
    opening = asyncio.create_task(catalog.hub.open_watch(compiled(name_pattern="[02468]$"), cursor=Cursor("epoch", 4)))
    turns = 0
    while not opening.done():
        await asyncio.sleep(0)
        turns += 1
        if turns == 5:
            catalog.put_service("late-0")

    with opening.result() as watcher:
        past = await read_message(watcher)

    assert turns > 16
    assert types_and_names(past) == [(REGISTERED, f"s{i:02}") for i in range(4, 20, 2)] + [(REGISTERED, "late-0")]
    assert cursor_of(past) == Cursor("epoch", 21)


async def test_cursor_that_expires_during_its_replay_is_refused() -> None:
    catalog = Catalog(slice_seconds=0, history=10)
    for i in range(10):
        catalog.put_service(f"s{i}")
    opening = asyncio.create_task(catalog.hub.open_watch(compiled(name_pattern="s"), cursor=Cursor("epoch", 0)))
    await asyncio.sleep(0)
    for i in range(10):
        catalog.put_service(f"t{i}")

    with pytest.raises(CursorExpired):
        await opening
    assert catalog.hub.counters.cursors_expired == 1


@pytest.mark.parametrize("behind", [False, True])
async def test_limited_number_of_watchers_sends_events_in_a_turn(*, behind: bool) -> None:
    catalog = Catalog()
    async with AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(catalog.following()) for _ in range(500)]
        if behind:  # the streams were still sending when the change was applied
            catalog.put_service("a")
        reading = [asyncio.create_task(read_message(watcher)) for watcher in watchers]
        if not behind:
            await asyncio.sleep(0)
            catalog.put_service("a")
        done = [0]
        while done[-1] < len(watchers):
            await asyncio.sleep(0)
            done.append(sum(task.done() for task in reading))

    assert max(after - before for before, after in pairwise(done)) <= 32


# Model-based test.


class Client:
    """Maintains a copy of the matching services like an agent: from a snapshot, events, and resumes after breaks."""

    def __init__(self, catalog: Catalog, filter_: Filter) -> None:
        self._catalog = catalog
        self._filter = filter_
        self._cursor: Cursor | None = None
        self._complete = False
        self._watcher: Watcher | None = None
        self.copy: dict[str, bytes] = {}
        self.revisions: list[int] = []

    async def read(self) -> bool:
        """Process one message; return whether the copy is now at the registry's revision."""
        if self._watcher is None:
            await self._connect()
        assert self._watcher is not None
        try:
            message = await read_message(self._watcher)
        except (WatcherTooSlow, CursorExpired) as error:
            self.leave(error)
            return False
        self._apply_message(message)
        return self._complete and message.revision == self._catalog.replica.revision

    def leave(self, error: RegistryError | None = None) -> None:
        if self._watcher is not None:
            with self._watcher:
                self._watcher = None
        if isinstance(error, CursorExpired) or not self._complete:
            self._cursor = None

    async def _connect(self) -> None:
        try:
            self._watcher = await self._open()
        except CursorExpired:
            self._cursor = None
            self._watcher = await self._open()
        if self._cursor is None:
            self.copy.clear()
            self.revisions.clear()
            self._complete = False

    async def _open(self) -> Watcher:
        # An idle stream sends a bookmark at once, so that the test never waits.
        return await self._catalog.hub.open_watch(self._filter, cursor=self._cursor, snapshot=True, bookmark_interval=0)

    def _apply_message(self, message: WatchEventsResponse) -> None:
        for event in message.events:
            if event.type in (UNREGISTERED, UNMATCHED):
                del self.copy[event.service.name]  # fails for an unknown service
            else:
                self.copy[event.service.name] = event.service.SerializeToString(deterministic=True)
            if event.type != SNAPSHOT:
                self.revisions.append(event.revision)
        self._cursor = cursor_of(message)
        self._complete = self._complete or message.snapshot_complete


def replace_all(catalog: Catalog) -> None:
    """Replace the store with a difference too large for watchers, whose watches expire."""
    catalog.hub.expire_all()
    records = list(catalog.replica.records.values())
    position = Position(catalog.replica.position.epoch + "'", 2)
    catalog.replica.resync([change(2, each, None) for each in records[::2]], position)


NAMES = st.sampled_from("abcd")
TAGS = st.lists(st.sampled_from("xy"), unique=True)
Action = Callable[[Catalog, Client], object]
ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.tuples(NAMES, TAGS).map(lambda put: lambda catalog, _: catalog.put_service(put[0], **tagged(*put[1]))),
    NAMES.map(lambda name: lambda catalog, _: catalog.delete_service(name)),
    st.just(lambda _, client: client.read()),
    st.just(lambda _, client: client.leave()),
    st.just(lambda catalog, _: replace_all(catalog)),
)


@given(
    st.lists(ACTIONS, max_size=30),
    st.sampled_from([{}, {"tags": ["x"]}, {"name_pattern": "[ab]"}]),
    st.integers(1, 6),
    st.integers(1, 12),
    st.sampled_from([0.0, 10.0]),
)
async def test_client_that_resumes_after_breaks_sees_every_event_once(
    actions: Sequence[Action], fields: dict[str, Any], buffer_events: int, history: int, slice_seconds: float
) -> None:
    catalog = Catalog(
        history=history,
        buffer_events=buffer_events,
        slice_seconds=slice_seconds,
        message_bytes=1,
        snapshot_message_bytes=1,
    )
    filter_ = compiled(**fields)
    client = Client(catalog, filter_)
    for action in actions:
        result = action(catalog, client)
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
    assert len(catalog.replica.anchors) == 0
