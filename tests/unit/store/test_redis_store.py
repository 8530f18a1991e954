import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, TypeAlias

import pytest
import redis.asyncio

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import ConfigurationError, NotReplicated, StoreUnavailable
from registry_server.model.document import service_document
from registry_server.store import Conflict, EpochChanged, Position, ProbeResult, RedisStore, StoredEvent, StoreLimits
from registry_server.store.keys import Keys
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service

Outcome: TypeAlias = int | Conflict | EpochChanged

REGISTERED = EventType.EVENT_TYPE_SERVICE_REGISTERED
UPDATED = EventType.EVENT_TYPE_SERVICE_UPDATED
UNREGISTERED = EventType.EVENT_TYPE_SERVICE_UNREGISTERED
CLIENT_REQUEST = EventReason.EVENT_REASON_CLIENT_REQUEST
LEASE_EXPIRED = EventReason.EVENT_REASON_LEASE_EXPIRED
REGISTRY_ERROR = EventType.EVENT_TYPE_REGISTRY_ERROR
HEALTH_CHECK = EventReason.EVENT_REASON_HEALTH_CHECK
SLACK_MS = 5_000  # that a slow machine may take between two commands


class Box(NamedTuple):
    """A store, a plain client of the same Redis, and the epoch."""

    store: RedisStore
    client: "redis.asyncio.Redis"
    epoch: str

    async def put(
        self,
        service: Service | str,
        expected: int = 0,
        *,
        ttl: float = 60,
        renew: bool = True,
        forget_check: bool = False,
        epoch: str | None = None,
    ) -> Outcome:
        return await self.store.writer.write_service(
            small_service(service) if isinstance(service, str) else service,
            epoch=self.epoch if epoch is None else epoch,
            expected=expected,
            type=UPDATED if expected else REGISTERED,
            reason=CLIENT_REQUEST,
            ttl=ttl,
            renew=renew,
            forget_check=forget_check,
        )

    async def touch(
        self, name: str, expected: int, *, ttl: float = 60, renew: bool = True, epoch: str | None = None
    ) -> Outcome:
        return await self.store.writer.touch_service(
            small_service(name),
            epoch=self.epoch if epoch is None else epoch,
            expected=expected,
            ttl=ttl,
            renew=renew,
        )

    async def delete(self, name: str, expected: int, *, epoch: str | None = None) -> Outcome:
        return await self.store.writer.delete_service(
            name, epoch=self.epoch if epoch is None else epoch, expected=expected, reason=CLIENT_REQUEST
        )

    async def notice(self, error: str, *, epoch: str | None = None) -> int | EpochChanged:
        return await self.store.writer.publish_notice(
            error, epoch=self.epoch if epoch is None else epoch, reason=HEALTH_CHECK
        )

    async def members(self) -> set[str]:
        listed: Any = await self.client.zrange(self.store.keys.members, 0, -1)
        return {member.decode() for member in listed}

    async def now_ms(self) -> int:
        seconds, micros = await self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def document(self, name: str) -> Any:
        text = await self.client.get(self.store.keys.document_prefix + name)
        return text and json.loads(text)

    async def document_left_ms(self, name: str) -> int:
        """What is left of the document's time; -1: it has no end, -2: there is none."""
        return int(await self.client.pttl(self.store.keys.document_prefix + name))

    async def stored(self, name: str) -> Service | None:
        wire: Any = await self.client.hget(self.store.keys.records, name)
        return Service.FromString(wire) if wire else None

    async def deadline(self, name: str) -> float | None:
        score = await self.client.zscore(self.store.keys.leases, name)
        return None if score is None else float(score)

    async def set_deadline(self, name: str, deadline_ms: int) -> None:
        await self.client.zadd(self.store.keys.leases, {name: deadline_ms})
        await self.client.pexpireat(self.store.keys.document_prefix + name, deadline_ms)

    async def revision(self) -> int:
        return int(await self.client.get(self.store.keys.revision) or 0)

    async def events(self) -> list[StoredEvent]:
        return [event async for page in self.store.reader.scan_events(1 << 53) for event in page]

    async def contents(self) -> dict[bytes, Any]:
        """All that is in Redis."""
        found: dict[bytes, Any] = {}
        async for key in self.client.scan_iter():
            match await self.client.type(key):
                case b"string":
                    # Rounded up: a lease of 60 s is the same for the ten seconds that a test may take.
                    found[key] = await self.client.get(key), -(-await self.client.ttl(key) // 10)
                case b"hash":
                    found[key] = await self.client.hgetall(key)
                case b"zset":
                    found[key] = await self.client.zrange(key, 0, -1, withscores=True)
                case b"set":
                    found[key] = await self.client.smembers(key)
                case b"stream":
                    found[key] = await self.client.xrange(key)
        return found


async def box_on(process: RedisProcess, **options: Any) -> Box:
    store = RedisStore(process.url, **options)
    await store.open()
    return Box(store, redis.asyncio.Redis.from_url(process.url), (await store.reader.resolve_head()).epoch)


@pytest.fixture
async def box(redis_process: RedisProcess, limits: StoreLimits) -> AsyncIterator[Box]:
    opened = await box_on(redis_process, limits=limits)
    yield opened
    await opened.client.aclose()
    await opened.store.close()


# Epoch and revision.


async def test_an_empty_store_begins_an_epoch_at_revision_0_and_keeps_it(box: Box) -> None:
    first = await box.store.reader.resolve_head()

    assert first == Position(box.epoch, 0)
    assert len(first.epoch) == 16
    assert await box.store.reader.resolve_head(Position("another", 99)) == first
    assert await box.store.reader.resolve_head(first) == first


async def test_the_head_tells_the_newest_revision(box: Box) -> None:
    await box.put("a")
    await box.put("b")

    assert (
        await box.store.reader.resolve_head()
        == await box.store.reader.resolve_head(Position(box.epoch, 1))
        == Position(box.epoch, 2)
    )


async def test_a_store_that_is_behind_what_was_seen_begins_another_epoch_without_the_old_events(box: Box) -> None:
    await box.put("a")
    await box.put("b")

    head = await box.store.reader.resolve_head(Position(box.epoch, 3))

    assert head.revision == 2
    assert head.epoch != box.epoch
    assert await box.events() == []
    assert await box.put("c", epoch=head.epoch) == 3
    assert [(event.epoch, event.revision) for event in await box.events()] == [(head.epoch, 3)]


async def test_several_who_notice_that_a_store_went_back_agree_on_one_epoch(box: Box) -> None:
    heads = await asyncio.gather(*(box.store.reader.resolve_head(Position(box.epoch, 9)) for _ in range(5)))

    assert len(set(heads)) == 1
    assert heads[0].epoch != box.epoch


async def test_a_history_that_was_rewritten_ends_and_whoever_else_says_so_learns_of_the_new_one(box: Box) -> None:
    await box.put("a")
    assert await box.store.reader.resolve_head(Position("another", 1), rewritten=True) == Position(box.epoch, 1)

    heads = [await box.store.reader.resolve_head(Position(box.epoch, 1), rewritten=True) for _ in range(3)]

    assert len(set(heads)) == 1
    assert heads[0].epoch != box.epoch
    assert heads[0].revision == 1
    assert await box.events() == []


async def test_an_emptied_store_begins_another_epoch(box: Box) -> None:
    await box.put("a")
    await box.client.flushall()

    head = await box.store.reader.resolve_head()

    assert head.revision == 0
    assert head.epoch != box.epoch


# Putting.


async def test_a_put_writes_record_document_lease_and_event(box: Box) -> None:
    service = example_service()
    before = await box.now_ms()

    assert await box.put(service, ttl=90) == 1

    name = service.name
    service.revision = 1
    assert await box.stored(name) == service
    assert await box.document(name) == json.loads(json.dumps(service_document(service)))
    deadline = await box.deadline(name)
    assert deadline is not None
    assert 0 <= deadline - before - 90_000 < SLACK_MS
    assert abs(await box.now_ms() + await box.document_left_ms(name) - deadline) < SLACK_MS
    assert await box.client.hget(box.store.keys.ttls, name) == b"90000"
    assert await box.revision() == 1
    [event] = await box.events()
    assert event == StoredEvent(
        box.epoch, 1, REGISTERED, CLIENT_REQUEST, event.at_ms, name, service.SerializeToString(), b""
    )
    assert 0 <= event.at_ms - before < SLACK_MS


async def test_the_document_ends_with_the_lease_to_the_millisecond(box: Box) -> None:
    await box.put("a", ttl=0.2)
    deadline = await box.deadline("a")
    assert deadline is not None

    while await box.document("a"):
        assert await box.now_ms() <= deadline + SLACK_MS
    assert await box.now_ms() >= deadline


async def test_an_event_has_the_state_before_and_after(box: Box) -> None:
    await box.put(small_service("a", version="1.0.0"))
    await box.put(small_service("a", version="2.0.0"), expected=1)
    await box.delete("a", expected=2)

    events = await box.events()

    states = [(Service.FromString(event.before), Service.FromString(event.after)) for event in events]
    assert [(before.version, after.version) for before, after in states] == [
        ("", "1.0.0"),
        ("1.0.0", "2.0.0"),
        ("2.0.0", ""),
    ]
    assert [(before.revision, after.revision) for before, after in states] == [(0, 1), (1, 2), (2, 0)]
    assert [event.type for event in events] == [REGISTERED, UPDATED, UNREGISTERED]


async def test_the_revision_of_what_is_put_is_the_stores_alone(box: Box) -> None:
    await box.put(small_service("a", revision=77))

    stored = await box.stored("a")
    assert stored is not None
    assert stored.revision == 1
    assert (await box.document("a"))["revision"] == 1


async def test_revisions_of_concurrent_changes_are_dense_and_in_the_order_of_events(box: Box) -> None:
    outcomes = await asyncio.gather(*(box.put(f"s{i}") for i in range(300)))

    assert sorted(outcome for outcome in outcomes if isinstance(outcome, int)) == list(range(1, 301))
    events = await box.events()
    assert [event.revision for event in events] == list(range(1, 301))
    assert {event.name: event.revision for event in events} == {f"s{i}": outcome for i, outcome in enumerate(outcomes)}


async def test_of_concurrent_changes_on_one_revision_one_is_made(box: Box) -> None:
    await box.put("a")

    outcomes = await asyncio.gather(*(box.put("a", expected=1) for _ in range(10)))

    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [2]
    assert [outcome for outcome in outcomes if not isinstance(outcome, int)] == [Conflict(2)] * 9


CHANGES = {"put": Box.put, "touch": Box.touch, "delete": Box.delete}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [("here", 0), ("here", 1), ("here", 3), ("absent", 1), ("absent", 2)],
    ids=str,
)
async def test_a_change_on_another_revision_than_expected_is_refused_and_writes_nothing(
    box: Box, change: Any, name: str, expected: int
) -> None:
    await box.put("other")
    await box.put("here")
    await box.put("newest")
    contents = await box.contents()

    assert await change(box, name, expected) == Conflict(3)

    assert await box.contents() == contents


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_change_that_rests_on_another_epoch_is_refused_and_writes_nothing(box: Box, change: Any) -> None:
    await box.put("a")
    contents = await box.contents()

    assert isinstance(await change(box, "a", 1, epoch="another"), EpochChanged)
    assert isinstance(await change(box, "a", 1, epoch=""), EpochChanged)

    assert await box.contents() == contents


async def test_an_emptied_store_takes_no_change_before_it_has_an_epoch(box: Box) -> None:
    await box.client.flushall()

    assert isinstance(await box.put("a"), EpochChanged)
    assert isinstance(await box.put("a", epoch=""), EpochChanged)

    assert await box.contents() == {}


LEASES = [
    pytest.param({"ttl": 60, "renew": True}, 60, id="renewed"),
    pytest.param({"ttl": 60, "renew": False}, 20, id="kept"),
    pytest.param({"ttl": 90, "renew": False}, 90, id="of another length"),
    pytest.param({"ttl": 90, "renew": True}, 90, id="of another length and renewed"),
]


@pytest.mark.parametrize(("lease", "left"), LEASES)
@pytest.mark.parametrize("change", [Box.put, Box.touch])
async def test_a_lease_goes_on_unless_it_is_renewed_or_its_length_changes(
    box: Box, change: Any, lease: dict[str, Any], left: int
) -> None:
    await box.put("a", ttl=60)
    await box.set_deadline("a", await box.now_ms() + 20_000)

    await change(box, "a", 1, **lease)

    deadline = await box.deadline("a")
    assert deadline is not None
    assert 0 <= await box.now_ms() + left * 1000 - deadline < SLACK_MS
    assert abs(await box.now_ms() + await box.document_left_ms("a") - deadline) < SLACK_MS
    assert await box.client.hget(box.store.keys.ttls, "a") == str(lease["ttl"] * 1000).encode()


async def test_a_permanent_service_has_no_end(box: Box) -> None:
    await box.put("a", ttl=0)

    assert await box.deadline("a") == float("inf")
    assert await box.document_left_ms("a") == -1
    assert await box.store.reader.read_check("a") == (None, None)


async def test_a_service_may_become_permanent_and_back(box: Box) -> None:
    await box.put("a", ttl=60)
    await box.put("a", 1, ttl=0, renew=False)
    assert await box.deadline("a") == float("inf")
    assert await box.document_left_ms("a") == -1

    await box.put("a", 2, ttl=60, renew=False)

    deadline = await box.deadline("a")
    assert deadline is not None
    assert abs(await box.now_ms() + 60_000 - deadline) < SLACK_MS
    assert 0 < await box.document_left_ms("a") <= 60_000


async def test_an_update_of_a_service_whose_lease_has_ended_does_not_bring_it_back(box: Box) -> None:
    await box.put("a")
    await box.set_deadline("a", await box.now_ms() - 10)

    assert await box.put("a", 1, renew=False) == 2

    assert await box.document("a") is None
    assert (await box.store.writer.sweep_leases(LEASE_EXPIRED)).removed == ["a"]


# Touching.


async def test_a_touch_writes_the_document_again_and_makes_no_change(box: Box) -> None:
    await box.put("a")
    document = await box.document("a")
    events, stored = await box.events(), await box.stored("a")
    await box.client.delete(box.store.keys.document_prefix + "a")

    assert await box.touch("a", 1) == 1

    assert await box.document("a") == document
    assert (await box.events(), await box.stored("a"), await box.revision()) == (events, stored, 1)


# Deleting.


async def test_a_delete_leaves_nothing_but_its_event(box: Box) -> None:
    await box.put("a")
    await box.store.writer.write_check("a", b"check", expected=1)

    assert await box.delete("a", 1) == 2

    keys = box.store.keys
    assert (await box.contents()).keys() <= {key.encode() for key in (keys.revision, keys.epoch, keys.events)}
    assert [event.type for event in await box.events()] == [REGISTERED, UNREGISTERED]


async def test_a_name_can_be_registered_again_after_it_was_deleted(box: Box) -> None:
    await box.put("a")
    await box.delete("a", 1)

    assert await box.put("a") == 3


# Renewing.


async def test_a_renewal_gives_the_full_length_again(box: Box) -> None:
    await box.put("a", ttl=60)
    await box.put("b", ttl=30)
    for name in "ab":
        await box.set_deadline(name, await box.now_ms() + 10_000)

    assert await box.store.writer.renew_leases(["a", "b"]) == []

    for name, ttl in (("a", 60_000), ("b", 30_000)):
        deadline = await box.deadline(name)
        assert deadline is not None
        assert 0 <= await box.now_ms() + ttl - deadline < SLACK_MS
        assert ttl - SLACK_MS < await box.document_left_ms(name) <= ttl


async def test_a_renewal_makes_no_change(box: Box) -> None:
    await box.put("a")
    events = await box.events()

    await box.store.writer.renew_leases(["a"])

    assert (await box.events(), await box.revision()) == (events, 1)


@pytest.mark.store_limits(renew_batch=3)
async def test_a_renewal_tells_unknown_names_in_order(box: Box) -> None:
    for name in ("good1", "good2", "good3"):
        await box.put(name)

    names = ["no1", "good1", "good2", "no2", "good3", "no1", "good1", "no3"]

    assert await box.store.writer.renew_leases(names) == ["no1", "no2", "no1", "no3"]


async def test_a_permanent_service_is_known_to_a_renewal_and_stays_as_it_is(box: Box) -> None:
    await box.put("a", ttl=0)

    assert await box.store.writer.renew_leases(["a"]) == []

    assert await box.deadline("a") == float("inf")
    assert await box.document_left_ms("a") == -1
    assert (await box.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents == []


async def test_nothing_to_renew_is_no_error(box: Box) -> None:
    assert await box.store.writer.renew_leases([]) == []


@pytest.mark.parametrize("change", [Box.put, Box.touch])
async def test_a_renewed_service_without_its_document_is_told_at_every_sweep_until_it_is_written(
    box: Box, change: Any
) -> None:
    for name in "ab":
        await box.put(name)
    await box.client.delete(box.store.keys.document_prefix + "a")
    await box.store.writer.renew_leases(["a", "b"])

    assert [(await box.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents for _ in range(2)] == [["a"], ["a"]]

    await change(box, "a", 1)

    assert (await box.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents == []
    assert await box.document("a") is not None


async def test_a_service_that_is_gone_has_no_document_to_write(box: Box) -> None:
    for name in ("deleted", "ended"):
        await box.put(name)
        await box.client.delete(box.store.keys.document_prefix + name)
    await box.store.writer.sweep_leases(LEASE_EXPIRED)
    await box.store.writer.renew_leases(["deleted", "ended"])

    await box.delete("deleted", 1)
    await box.set_deadline("ended", await box.now_ms() - 1)

    sweep = await box.store.writer.sweep_leases(LEASE_EXPIRED)
    assert (sweep.removed, sweep.missing_documents) == (["ended"], [])


@pytest.mark.store_limits(sweep_batch=3)
async def test_a_sweep_tells_a_bounded_number_of_documents_to_write(box: Box) -> None:
    names = [f"s{i}" for i in range(5)]
    for name in names:
        await box.put(name)
        await box.client.delete(box.store.keys.document_prefix + name)
    await box.store.writer.renew_leases(names)

    bare = (await box.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents

    assert len(set(bare)) == 3
    assert set(bare) < set(names)


# Sweeping.


async def test_a_sweep_removes_what_has_ended_in_the_order_in_which_it_ended(box: Box) -> None:
    await box.store.writer.sweep_leases(LEASE_EXPIRED)
    for name in ("second", "alive", "first", "permanent", "third"):
        await box.put(name, ttl=0 if name == "permanent" else 60)
    now = await box.now_ms()
    for ago, name in ((30, "first"), (20, "second"), (10, "third")):
        await box.set_deadline(name, now - ago)

    sweep = await box.store.writer.sweep_leases(LEASE_EXPIRED)

    assert sweep.removed == ["first", "second", "third"]
    assert (sweep.shift_seconds, sweep.missing_documents) == (0, [])
    assert sweep.next_expiry_seconds is not None
    assert 60 - SLACK_MS / 1000 < sweep.next_expiry_seconds <= 60
    events = (await box.events())[5:]
    assert [(event.name, event.type, event.reason, event.revision) for event in events] == [
        ("first", UNREGISTERED, LEASE_EXPIRED, 6),
        ("second", UNREGISTERED, LEASE_EXPIRED, 7),
        ("third", UNREGISTERED, LEASE_EXPIRED, 8),
    ]
    assert Service.FromString(events[0].before).name == "first"
    assert not any(event.after for event in events)
    assert await box.stored("first") is None
    assert await box.client.hkeys(box.store.keys.ttls) == [b"alive", b"permanent"]


@pytest.mark.store_limits(sweep_batch=2)
async def test_a_sweep_removes_a_bounded_batch_and_says_that_there_is_more(box: Box) -> None:
    await box.store.writer.sweep_leases(LEASE_EXPIRED)
    now = await box.now_ms()
    for i in range(3):
        await box.put(f"s{i}")
        await box.set_deadline(f"s{i}", now - 10 + i)

    sweeps = [await box.store.writer.sweep_leases(LEASE_EXPIRED) for _ in range(3)]

    assert [sweep.removed for sweep in sweeps] == [["s0", "s1"], ["s2"], []]
    assert [sweep.next_expiry_seconds for sweep in sweeps] == [0, None, None]


async def test_a_sweep_tells_when_the_next_lease_ends_if_one_does(box: Box) -> None:
    assert (await box.store.writer.sweep_leases(LEASE_EXPIRED)).next_expiry_seconds is None
    await box.put("permanent", ttl=0)
    assert (await box.store.writer.sweep_leases(LEASE_EXPIRED)).next_expiry_seconds is None
    await box.put("a", ttl=50)
    await box.put("b", ttl=40)

    next_in = (await box.store.writer.sweep_leases(LEASE_EXPIRED)).next_expiry_seconds

    assert next_in is not None
    assert 40 - SLACK_MS / 1000 < next_in <= 40


@pytest.mark.parametrize("gap_ms", [60_000, -60_000], ids=["nobody swept", "clock set back"])
async def test_after_a_gap_leases_and_documents_move_and_nothing_is_removed(box: Box, gap_ms: int) -> None:
    await box.store.writer.sweep_leases(LEASE_EXPIRED)
    now = await box.now_ms()
    await box.put("permanent", ttl=0)
    # As the gap began, one lease had 20 s left and one had 100 s.
    for name, left in (("short", 20_000), ("long", 100_000)):
        await box.put(name, ttl=200)
        await box.set_deadline(name, now - gap_ms + left)
    await box.client.set(box.store.keys.sweep, now - gap_ms)

    sweep = await box.store.writer.sweep_leases(LEASE_EXPIRED)

    assert sweep.removed == []
    assert sweep.next_expiry_seconds is not None
    assert 20 - SLACK_MS / 1000 < sweep.next_expiry_seconds <= 20 + SLACK_MS / 1000
    assert abs(sweep.shift_seconds * 1000 - gap_ms) < SLACK_MS
    for name, left in (("short", 20_000), ("long", 100_000)):
        deadline = await box.deadline(name)
        assert deadline is not None
        assert abs(deadline - now - left) < SLACK_MS
    assert abs(await box.document_left_ms("long") - 100_000) < SLACK_MS
    # The document of a lease that ended in the gap went with it; only its record knows better.
    assert sweep.missing_documents == (["short"] if gap_ms > 0 else [])
    assert await box.deadline("permanent") == float("inf")
    again = await box.store.writer.sweep_leases(LEASE_EXPIRED)
    assert (again.removed, again.shift_seconds) == ([], 0)  # the gap counts once


@pytest.mark.parametrize("renewed", ["registered", "heartbeat", "probed"])
async def test_a_lease_that_begins_between_a_clock_set_back_and_the_next_sweep_lasts_as_long_as_any(
    box: Box, renewed: str
) -> None:
    await box.put("a", ttl=20)
    await box.client.set(box.store.keys.sweep, await box.now_ms() + 3_600_000)

    match renewed:
        case "registered":
            await box.put("b", ttl=20)
        case "heartbeat":
            await box.store.writer.renew_leases(["a"])
        case _:
            await box.store.writer.write_checks([ProbeResult("a", b"", renew=True)])
    moved, after = [await box.store.writer.sweep_leases(LEASE_EXPIRED) for _ in range(2)]

    assert (moved.removed, after.removed) == ([], ["a"] if renewed == "registered" else [])
    assert after.next_expiry_seconds is not None
    assert abs(after.next_expiry_seconds - 20) < SLACK_MS / 1000


async def test_a_lease_that_ended_before_the_gap_ends_after_it(box: Box) -> None:
    await box.put("a")
    now = await box.now_ms()
    await box.set_deadline("a", now - 60_001)
    await box.client.set(box.store.keys.sweep, now - 60_000)

    moved = await box.store.writer.sweep_leases(LEASE_EXPIRED)
    swept = await box.store.writer.sweep_leases(LEASE_EXPIRED)

    assert (moved.removed, swept.removed) == ([], ["a"])


@pytest.mark.parametrize("late_ms", [0, 15_000, -9_000])
async def test_a_sweep_that_is_a_little_late_or_early_moves_nothing(redis_process: RedisProcess, late_ms: int) -> None:
    box = await box_on(redis_process, sweep_interval=10.0)
    await box.put("a")
    deadline = await box.deadline("a")
    await box.client.set(box.store.keys.sweep, await box.now_ms() - late_ms)

    assert (await box.store.writer.sweep_leases(LEASE_EXPIRED)).shift_seconds == 0

    assert await box.deadline("a") == deadline
    await box.client.aclose()
    await box.store.close()


async def test_a_sweep_that_finds_a_lease_without_a_service_takes_it_away(box: Box) -> None:
    await box.store.writer.sweep_leases(LEASE_EXPIRED)
    await box.client.zadd(box.store.keys.leases, {"ghost": 1})

    await box.store.writer.sweep_leases(LEASE_EXPIRED)

    assert await box.deadline("ghost") is None
    assert await box.events() == []


# Checks.


async def test_the_newest_check_is_kept_for_known_services_only(box: Box) -> None:
    await box.put("a", ttl=60)

    assert await box.store.writer.write_check("a", b"one", expected=1) is None
    assert await box.store.writer.write_check("a", b"two", expected=1) is None
    assert await box.store.writer.write_check("a", b"of another state", expected=7) == Conflict(1)
    assert await box.store.writer.write_check("absent", b"three", expected=1) == Conflict(1)

    check, ends = await box.store.reader.read_check("a")
    assert check == b"two"
    assert ends == await box.deadline("a")
    assert await box.store.reader.read_check("absent") == (None, None)
    assert await box.revision() == 1


async def test_a_check_stays_until_it_is_to_be_forgotten_or_the_service_is_gone(box: Box) -> None:
    await box.put("a")
    await box.store.writer.write_check("a", b"check", expected=1)

    await box.put("a", 1)
    assert (await box.store.reader.read_check("a"))[0] == b"check"
    await box.put("a", 2, forget_check=True)
    assert (await box.store.reader.read_check("a"))[0] is None

    await box.store.writer.write_check("a", b"check", expected=1)
    await box.delete("a", 3)
    await box.put("a")
    assert (await box.store.reader.read_check("a"))[0] is None


async def test_a_sweep_forgets_checks(box: Box) -> None:
    await box.store.writer.sweep_leases(LEASE_EXPIRED)
    await box.put("a")
    await box.store.writer.write_check("a", b"check", expected=1)
    await box.set_deadline("a", await box.now_ms() - 1)

    await box.store.writer.sweep_leases(LEASE_EXPIRED)

    assert await box.client.hgetall(box.store.keys.checks) == {}


async def test_results_of_probes_are_kept_for_known_services_only_and_make_no_change(box: Box) -> None:
    await box.put("a")
    await box.put("b")
    before = await box.events()

    await box.store.writer.write_checks(
        [
            ProbeResult("a", b"of a", renew=False),
            ProbeResult("absent", b"of nobody", renew=True),
            ProbeResult("b", b"\x00\xff", renew=True),
        ]
    )

    assert await box.client.hgetall(box.store.keys.checks) == {b"a": b"of a", b"b": b"\x00\xff"}
    assert await box.deadline("absent") is None
    assert await box.events() == before
    assert await box.revision() == 2


async def test_results_renew_the_leases_of_those_that_succeeded(box: Box) -> None:
    soon = await box.now_ms() + 1_000
    for name in ("renewed", "kept"):
        await box.put(name, ttl=60)
        await box.set_deadline(name, soon)
    await box.put("permanent", ttl=0)

    before = await box.now_ms()
    await box.store.writer.write_checks(
        [ProbeResult(name, b"check", renew=name != "kept") for name in ("renewed", "kept", "permanent")]
    )

    renewed = await box.deadline("renewed")
    assert renewed is not None
    assert 0 <= renewed - before - 60_000 < SLACK_MS
    assert await box.document_left_ms("renewed") > 60_000 - SLACK_MS
    assert await box.deadline("kept") == soon
    assert await box.document_left_ms("kept") <= 1_000
    assert await box.deadline("permanent") == float("inf")
    assert await box.document_left_ms("permanent") == -1


async def test_a_result_that_renews_a_lease_whose_document_is_gone_has_it_written_again(box: Box) -> None:
    await box.store.writer.sweep_leases(LEASE_EXPIRED)
    await box.put("a")
    await box.client.delete(box.store.keys.document_prefix + "a")

    await box.store.writer.write_checks([ProbeResult("a", b"check", renew=True)])

    assert (await box.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents == ["a"]


@pytest.mark.store_limits(checks_batch=3)
async def test_any_number_of_results_is_written_the_newest_last(box: Box) -> None:
    names = [f"s{i}" for i in range(7)]
    for name in names:
        await box.put(name)

    await box.store.writer.write_checks([])
    await box.store.writer.write_checks([ProbeResult(name, name.encode(), renew=False) for name in names])
    await box.store.writer.write_checks([ProbeResult("s0", b"newer", renew=False)])

    checks = {name.encode(): name.encode() for name in names}
    assert await box.client.hgetall(box.store.keys.checks) == {**checks, b"s0": b"newer"}


# Notices.


async def test_a_notice_is_an_event_of_no_service_with_a_revision_of_its_own(box: Box) -> None:
    await box.put("a")
    records = await box.client.hgetall(box.store.keys.records)
    before = await box.now_ms()

    assert await box.notice("half of all fail: größer als 機") == 2

    [_, event] = await box.events()
    assert event == StoredEvent(
        box.epoch, 2, REGISTRY_ERROR, HEALTH_CHECK, event.at_ms, "", b"", b"", "half of all fail: größer als 機"
    )
    assert 0 <= event.at_ms - before < SLACK_MS
    assert await box.store.reader.read_event(2) == event
    assert await box.store.reader.wait_for_events(1) == [event]
    assert await box.store.reader.resolve_head() == Position(box.epoch, 2)
    assert await box.client.hgetall(box.store.keys.records) == records
    assert await box.put("b") == 3


async def test_an_event_of_a_service_has_no_error_also_if_it_was_written_before_there_were_notices(box: Box) -> None:
    await box.put("a")
    [event] = await box.events()
    assert event.error == ""

    entries: Any = await box.client.xrange(box.store.keys.events)
    [(_, fields)] = entries
    assert fields.pop(b"x") == b""
    await box.client.xadd(box.store.keys.events, fields, id="2-0")
    [_, older] = await box.events()
    assert older == event._replace(revision=2)


async def test_a_notice_of_another_epoch_is_refused_and_writes_nothing(box: Box) -> None:
    await box.put("a")
    contents = await box.contents()
    assert isinstance(await box.notice("trouble", epoch="another"), EpochChanged)
    assert await box.contents() == contents


# Members.


async def test_members_are_those_who_say_so_and_have_not_left(box: Box) -> None:
    assert await box.store.writer.announce_member("b", 60) == ["b"]
    assert sorted(await box.store.writer.announce_member("a", 60)) == ["a", "b"]
    assert sorted(await box.store.writer.announce_member("b", 60)) == ["a", "b"]

    await box.store.writer.remove_member("b", 60)
    await box.store.writer.remove_member("never-there", 60)

    assert await box.members() == {"a"}
    assert await box.store.writer.announce_member("a", 60) == ["a"]


@pytest.mark.parametrize(("said_s", "lives"), [(-50, True), (-70, False), (50, True), (70, False)], ids=str)
async def test_whoever_said_so_more_than_a_period_ago_or_ahead_is_gone(
    box: Box,
    said_s: int,
    lives: bool,  # noqa: FBT001
) -> None:
    """Ahead: the clock of Redis was set back."""
    await box.client.zadd(box.store.keys.members, {"other": await box.now_ms() + said_s * 1000})
    assert ("other" in await box.store.writer.announce_member("a", 60)) is lives
    assert ("other" in await box.members()) is lives


async def test_after_the_clock_of_redis_was_set_back_a_member_says_so_at_the_new_time(box: Box) -> None:
    await box.client.zadd(box.store.keys.members, {"a": await box.now_ms() + 3_600_000})
    assert await box.store.writer.announce_member("a", 60) == ["a"]
    score = await box.client.zscore(box.store.keys.members, "a")
    assert score is not None
    assert abs(await box.now_ms() - float(score)) < SLACK_MS


# Revisions of every size, which Lua writes into records and reads from them.


@pytest.mark.parametrize(
    "revision",
    [1, 2, 126, 127, 128, 129, 16_383, 16_384, 2_097_151, 2_097_152, 2**31 - 1, 2**31, 2**32, 2**40, 2**52],
)
async def test_a_revision_of_any_size_is_written_read_and_told_exactly(box: Box, revision: int) -> None:
    await box.client.set(box.store.keys.revision, revision - 1)

    assert await box.put("a") == revision
    stored = await box.stored("a")
    assert stored == small_service("a", revision=revision)
    assert (await box.document("a"))["revision"] == revision
    assert await box.store.reader.resolve_head() == Position(box.epoch, revision)
    assert await box.put("a", expected=revision - 1 or 7) == Conflict(revision)
    assert await box.touch("a", revision) == revision
    assert await box.put("a", expected=revision) == revision + 1
    assert await box.delete("a", expected=revision + 1) == revision + 2
    assert [event.revision for event in await box.events()] == [revision, revision + 1, revision + 2]


async def test_the_revision_is_found_whatever_the_record_ends_with(box: Box) -> None:
    # A ttl is the last field before the revision: its bytes may look like a tag, or like the inside of a varint.
    for revision, seconds in enumerate((72, 200, 9_288, 18_504, 86_399), start=1):
        service = small_service(f"s{seconds}")
        service.ttl.FromSeconds(seconds)
        await box.put(service)
        assert await box.touch(service.name, revision) == revision


# Reading.


@pytest.mark.store_limits(page=100)
async def test_all_records_are_read(box: Box) -> None:
    names = {f"s{i}" for i in range(700)}
    await asyncio.gather(*(box.put(name) for name in names))

    pages = [page async for page in box.store.reader.scan_records()]

    assert {Service.FromString(wire).name for page in pages for wire in page} == names
    assert len(pages) > 1


async def test_an_empty_store_has_no_records_and_no_events(box: Box) -> None:
    assert [wire async for page in box.store.reader.scan_records() for wire in page] == []
    assert await box.events() == []
    assert await box.store.reader.read_event(1) is None


@pytest.mark.store_limits(page=4)
async def test_events_are_read_in_order_and_up_to_a_revision(box: Box) -> None:
    await asyncio.gather(*(box.put(f"s{i}") for i in range(10)))

    everything = await box.events()
    earlier = [event async for page in box.store.reader.scan_events(until=7) for event in page]

    assert [event.revision for event in everything] == list(range(1, 11))
    assert earlier == everything[:7]
    assert await box.store.reader.read_event(7) == everything[6]
    assert await box.store.reader.read_event(11) is None


@pytest.mark.store_limits(tail_block_seconds=0.02)
async def test_the_tail_gives_what_comes_and_returns_when_nothing_does(box: Box, redis_process: RedisProcess) -> None:
    assert await box.store.reader.wait_for_events(0) == []
    blocking = await box_on(redis_process, limits=StoreLimits(tail_block_seconds=20.0))
    waiting = asyncio.create_task(blocking.store.reader.wait_for_events(0))
    await asyncio.sleep(0.02)

    await box.put("a")
    await box.put("b")

    events = await waiting
    await blocking.client.aclose()
    await blocking.store.close()
    if len(events) == 1:
        events += await box.store.reader.wait_for_events(1)
    assert [event.name for event in events] == ["a", "b"]
    assert [event.name for event in await box.store.reader.wait_for_events(1)] == ["b"]


async def test_the_stream_keeps_at_least_as_many_events_as_it_shall_and_not_many_more(
    redis_process: RedisProcess,
) -> None:
    box = await box_on(redis_process, events_max_length=150)
    for i in range(10):
        await asyncio.gather(*(box.put(f"s{i}-{j}") for j in range(100)))

    kept = [event.revision for event in await box.events()]

    assert kept == list(range(1001 - len(kept), 1001))
    assert 150 <= len(kept) <= 150 + 101  # whole nodes of the stream go
    await box.client.aclose()
    await box.store.close()


# Keys.


@pytest.mark.parametrize(
    ("prefix", "own"),
    [
        ("ossa:services", "ossa:registry:"),
        ("{ossa}:services", "{ossa}:registry:"),
        ("team:ossa:services", "team:ossa:registry:"),
        ("plain", "plain:registry:"),
        ("services", "services:registry:"),
        ("{tag}", "{tag}:registry:"),
    ],
)
async def test_every_key_is_under_the_prefix(redis_process: RedisProcess, prefix: str, own: str) -> None:
    box = await box_on(redis_process, key_prefix=prefix)
    await box.put("a")
    await box.put("b")
    await box.store.writer.write_check("a", b"check", expected=1)
    await box.client.delete(f"{prefix}:b")
    await box.store.writer.renew_leases(["b"])
    await box.store.writer.sweep_leases(LEASE_EXPIRED)

    kinds = ("revision", "epoch", "records", "leases", "ttls", "events", "checks", "sweep", "bare")
    assert set(await box.client.keys("*")) == {f"{prefix}:a".encode(), *(f"{own}{kind}".encode() for kind in kinds)}
    assert Keys.under(prefix).document_prefix == f"{prefix}:"
    await box.client.aclose()
    await box.store.close()


async def test_registries_with_different_prefixes_do_not_meet(redis_process: RedisProcess) -> None:
    one = await box_on(redis_process, key_prefix="one:services")
    two = await box_on(redis_process, key_prefix="two:services")

    await one.put("a")
    await two.put("a")
    await two.put("a", 1)
    await one.delete("a", 1)

    assert one.epoch != two.epoch
    assert (await one.revision(), await two.revision()) == (2, 2)
    assert (await one.document("a"), (await two.document("a"))["revision"]) == (None, 2)
    for box in (one, two):
        await box.client.aclose()
        await box.store.close()


@pytest.mark.parametrize(
    "url", ["http://localhost", "redis://localhost?colour=red", "redis+sentinel://h/m?colour=red", ""]
)
def test_a_url_that_is_not_supported_is_refused_by_its_setting(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^redis\.url: "):
        RedisStore(url)


# Redis in trouble.


async def test_scripts_come_back_after_redis_has_lost_them_in_mid_use(box: Box) -> None:
    puts = [asyncio.create_task(box.put(f"s{i}")) for i in range(1000)]
    await puts[100]
    await box.client.script_flush()

    outcomes = await asyncio.gather(*puts)

    assert sorted(outcome for outcome in outcomes if isinstance(outcome, int)) == list(range(1, 1001))


async def test_a_redis_that_loses_scripts_again_and_again_is_unavailable_at_times(box: Box) -> None:
    puts = [asyncio.create_task(box.put(f"s{i}")) for i in range(2000)]
    while not all(put.done() for put in puts):
        await box.client.script_flush()

    outcomes = await asyncio.gather(*puts, return_exceptions=True)

    made = sorted(outcome for outcome in outcomes if isinstance(outcome, int))
    assert made == list(range(1, len(made) + 1))
    assert all(isinstance(outcome, int | StoreUnavailable) for outcome in outcomes)


@pytest.mark.own_redis
async def test_a_restarted_redis_goes_on_where_it_was(box: Box, redis_process: RedisProcess) -> None:
    await box.put("a")
    redis_process.kill()
    await redis_process.restart()

    await box.store.reconnect()

    assert await box.store.reader.resolve_head() == Position(box.epoch, 1)
    assert await box.put("b") == 2
    assert [event.name for event in await box.store.reader.wait_for_events(0)] == ["a", "b"]


async def test_events_over_a_connection_that_nobody_looked_at_are_not_given(box: Box) -> None:
    await box.put("a")
    assert len(await box.store.reader.wait_for_events(0)) == 1
    await box.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]

    for _ in range(2):  # redis-py connects again by itself when it finds the connection closed
        with pytest.raises(StoreUnavailable):
            await box.store.reader.wait_for_events(0)
    await box.store.reconnect()

    assert len(await box.store.reader.wait_for_events(0)) == 1


@pytest.mark.slow
async def test_without_replicas_a_change_is_made_and_told_not_to_be_replicated(redis_process: RedisProcess) -> None:
    box = await box_on(redis_process, timeout=5.0, wait_replicas=2, wait_timeout=0.02)

    with pytest.raises(NotReplicated, match=r"as revision 1, but only 0 of 2 replicas have it yet") as told:
        await box.put("a")
    assert (told.value.revision, told.value.confirmed, told.value.wanted) == (1, 0, 2)
    assert await box.put("a") == Conflict(1)  # it changed nothing, so there is nothing to confirm
    with pytest.raises(NotReplicated):
        await box.touch("a", 1)
    with pytest.raises(NotReplicated, match="as revision 2"):
        await box.delete("a", 1)
    assert await box.store.writer.renew_leases(["a"]) == ["a"]
    assert await box.store.reader.resolve_head() == Position(box.epoch, 2)

    await box.client.aclose()
    await box.store.close()


async def test_a_user_who_may_not_wait_for_replicas_is_refused_at_the_start(redis_process: RedisProcess) -> None:
    async with redis.asyncio.Redis.from_url(redis_process.url) as client:
        await client.execute_command(  # type: ignore[no-untyped-call]
            *("ACL", "SETUSER", "agent", "on", ">secret", "~*", "+@all", "-wait")
        )
    store = RedisStore(redis_process.url.replace("//", "//agent:secret@"), wait_replicas=1)

    with pytest.raises(ConfigurationError, match=r"^redis\.wait_replicas: Redis refuses WAIT: "):
        await store.open()
    await store.close()


@pytest.mark.own_redis
async def test_until_redis_is_back_a_reconnection_says_that_it_is_away(box: Box, redis_process: RedisProcess) -> None:
    await redis_process.stop()

    with pytest.raises(StoreUnavailable):
        await box.store.reconnect()
    with pytest.raises(StoreUnavailable):
        await box.store.reader.wait_for_events(0)
    with pytest.raises(StoreUnavailable):
        await box.store.open()
    with pytest.raises(StoreUnavailable):
        await box.store.reader.read_event(1)


WRITES = {
    "register": lambda box: box.put("new"),
    "update": lambda box: box.put("a", 1),
    "update with a new lease": lambda box: box.put("a", 1, ttl=70, forget_check=True),
    "touch": lambda box: box.touch("a", 1),
    "touch without renewal": lambda box: box.touch("a", 1, renew=False),
    "delete": lambda box: box.delete("a", 1),
    "renew": lambda box: box.store.writer.renew_leases(["a"]),
    "sweep": lambda box: box.store.writer.sweep_leases(LEASE_EXPIRED),
    "check": lambda box: box.store.writer.write_check("a", b"new check", expected=1),
    "probe results": lambda box: box.store.writer.write_checks([ProbeResult("a", b"new check", renew=True)]),
    "notice": lambda box: box.notice("trouble"),
    "member": lambda box: box.store.writer.announce_member("process", 60),
    "new epoch": lambda box: box.store.reader.resolve_head(Position(box.epoch, 99)),
}


async def prepare(box: Box) -> None:
    await box.store.writer.sweep_leases(LEASE_EXPIRED)
    await box.put("a")
    await box.store.writer.write_check("a", b"check", expected=1)
    await box.put("ended")
    await box.client.zadd(box.store.keys.leases, {"ended": await box.now_ms() - 1})


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_redis_without_memory_is_unavailable_and_keeps_nothing_of_a_write(box: Box, write: Any) -> None:
    await prepare(box)
    contents = await box.contents()
    await box.client.config_set("maxmemory", "1")

    with pytest.raises(StoreUnavailable, match="out of memory"):
        await write(box)

    assert await box.contents() == contents
    await box.client.config_set("maxmemory", "0")
    await write(box)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_redis_that_wants_more_replicas_than_it_has_is_unavailable_and_keeps_nothing_of_a_write(
    box: Box, write: Any
) -> None:
    await prepare(box)
    contents = await box.contents()
    await box.client.config_set("min-replicas-to-write", "1")

    with pytest.raises(StoreUnavailable, match="too few replicas"):
        await write(box)

    assert await box.contents() == contents
    await box.client.config_set("min-replicas-to-write", "0")
    await write(box)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_redis_that_was_made_a_replica_is_unavailable_and_keeps_nothing_of_a_write(
    box: Box, redis_process: RedisProcess, write: Any
) -> None:
    await prepare(box)
    await box.client.replicaof("127.0.0.1", redis_process.port)  # of nobody: it never gets data

    contents = await box.contents()
    with pytest.raises(StoreUnavailable):
        await write(box)

    assert await box.contents() == contents
    await box.client.replicaof("NO", "ONE")
    await write(box)


async def test_who_waits_for_events_of_a_redis_that_is_made_a_replica_learns_that_it_is_away(
    box: Box, redis_process: RedisProcess
) -> None:
    waiting = asyncio.create_task(box.store.reader.wait_for_events(0))
    async with asyncio.timeout(SLACK_MS / 1000):
        while not (await box.client.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.01)

    await box.client.replicaof("127.0.0.1", redis_process.port)

    with pytest.raises(StoreUnavailable):
        await waiting
