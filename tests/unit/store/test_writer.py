"""``StoreWriter``: changes of services, notices and members."""

import asyncio
import json
from typing import Any

import pytest

from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import NotReplicated
from registry_server.model.document import service_document
from registry_server.store import Conflict, EpochChanged, Position, StoredEvent
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.unit.store.harness import (
    CLIENT_REQUEST,
    HEALTH_CHECK,
    LEASE_EXPIRED,
    REGISTERED,
    REGISTRY_ERROR,
    SLACK_MS,
    UNREGISTERED,
    UPDATED,
    StoreHarness,
    open_harness,
)

# Writing a service.


async def test_write_creates_record_document_lease_and_event(harness: StoreHarness) -> None:
    service = example_service()
    before = await harness.now_ms()

    assert await harness.write_service(service, ttl=90) == 1

    name = service.name
    service.revision = 1
    assert await harness.read_record(name) == service
    assert await harness.read_document(name) == json.loads(json.dumps(service_document(service)))
    deadline = await harness.read_deadline(name)
    assert deadline is not None
    assert 0 <= deadline - before - 90_000 < SLACK_MS
    assert abs(await harness.now_ms() + await harness.read_document_ttl_ms(name) - deadline) < SLACK_MS
    assert await harness.client.hget(harness.store.keys.ttls, name) == b"90000"
    assert await harness.read_revision() == 1
    [event] = await harness.read_events()
    assert event == StoredEvent(
        harness.epoch, 1, REGISTERED, CLIENT_REQUEST, event.at_ms, name, service.SerializeToString(), b""
    )
    assert 0 <= event.at_ms - before < SLACK_MS


async def test_document_expires_with_the_lease_to_the_millisecond(harness: StoreHarness) -> None:
    await harness.write_service("a", ttl=0.2)
    deadline = await harness.read_deadline("a")
    assert deadline is not None

    while await harness.read_document("a"):
        assert await harness.now_ms() <= deadline + SLACK_MS
    assert await harness.now_ms() >= deadline


async def test_event_contains_the_state_before_and_after(harness: StoreHarness) -> None:
    await harness.write_service(small_service("a", version="1.0.0"))
    await harness.write_service(small_service("a", version="2.0.0"), expected=1)
    await harness.delete_service("a", expected=2)

    events = await harness.read_events()

    states = [(Service.FromString(event.before), Service.FromString(event.after)) for event in events]
    assert [(before.version, after.version) for before, after in states] == [
        ("", "1.0.0"),
        ("1.0.0", "2.0.0"),
        ("2.0.0", ""),
    ]
    assert [(before.revision, after.revision) for before, after in states] == [(0, 1), (1, 2), (2, 0)]
    assert [event.type for event in events] == [REGISTERED, UPDATED, UNREGISTERED]


async def test_revision_of_a_written_service_is_ignored(harness: StoreHarness) -> None:
    await harness.write_service(small_service("a", revision=77))

    stored = await harness.read_record("a")
    assert stored is not None
    assert stored.revision == 1
    assert (await harness.read_document("a"))["revision"] == 1


async def test_concurrent_changes_have_consecutive_revisions(harness: StoreHarness) -> None:
    outcomes = await asyncio.gather(*(harness.write_service(f"s{i}") for i in range(300)))

    assert sorted(outcome for outcome in outcomes if isinstance(outcome, int)) == list(range(1, 301))
    events = await harness.read_events()
    assert [event.revision for event in events] == list(range(1, 301))
    assert {event.name: event.revision for event in events} == {f"s{i}": outcome for i, outcome in enumerate(outcomes)}


async def test_only_one_of_concurrent_changes_of_a_revision_succeeds(harness: StoreHarness) -> None:
    await harness.write_service("a")

    outcomes = await asyncio.gather(*(harness.write_service("a", expected=1) for _ in range(10)))

    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [2]
    assert [outcome for outcome in outcomes if not isinstance(outcome, int)] == [Conflict(2, 2)] * 9


CHANGES = {
    "write": StoreHarness.write_service,
    "touch": StoreHarness.touch_service,
    "delete": StoreHarness.delete_service,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("name", "expected"),
    [("here", 0), ("here", 1), ("here", 3), ("absent", 1), ("absent", 2)],
    ids=str,
)
async def test_change_of_another_revision_conflicts_and_writes_nothing(
    harness: StoreHarness, change: Any, name: str, expected: int
) -> None:
    await harness.write_service("other")
    await harness.write_service("here")
    await harness.write_service("newest")
    contents = await harness.read_contents()

    assert await change(harness, name, expected) == Conflict(3, 2 if name == "here" else 0)

    assert await harness.read_contents() == contents


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_change_of_another_epoch_is_refused_and_writes_nothing(harness: StoreHarness, change: Any) -> None:
    await harness.write_service("a")
    contents = await harness.read_contents()

    assert isinstance(await change(harness, "a", 1, epoch="another"), EpochChanged)
    assert isinstance(await change(harness, "a", 1, epoch=""), EpochChanged)

    assert await harness.read_contents() == contents


async def test_store_without_an_epoch_refuses_changes(harness: StoreHarness) -> None:
    await harness.client.flushall()

    assert isinstance(await harness.write_service("a"), EpochChanged)
    assert isinstance(await harness.write_service("a", epoch=""), EpochChanged)

    assert await harness.read_contents() == {}


LEASES = [
    pytest.param({"ttl": 60, "renew": True}, 60, id="renewed"),
    pytest.param({"ttl": 60, "renew": False}, 20, id="kept"),
    pytest.param({"ttl": 90, "renew": False}, 90, id="changed length"),
    pytest.param({"ttl": 90, "renew": True}, 90, id="changed length and renewed"),
]


@pytest.mark.parametrize(("lease", "remaining"), LEASES)
@pytest.mark.parametrize("change", [StoreHarness.write_service, StoreHarness.touch_service])
async def test_lease_continues_unless_renewed_or_changed_in_length(
    harness: StoreHarness, change: Any, lease: dict[str, Any], remaining: int
) -> None:
    await harness.write_service("a", ttl=60)
    await harness.set_deadline("a", await harness.now_ms() + 20_000)

    await change(harness, "a", 1, **lease)

    deadline = await harness.read_deadline("a")
    assert deadline is not None
    assert 0 <= await harness.now_ms() + remaining * 1000 - deadline < SLACK_MS
    assert abs(await harness.now_ms() + await harness.read_document_ttl_ms("a") - deadline) < SLACK_MS
    assert await harness.client.hget(harness.store.keys.ttls, "a") == str(lease["ttl"] * 1000).encode()


async def test_permanent_service_does_not_expire(harness: StoreHarness) -> None:
    await harness.write_service("a", ttl=0)

    assert await harness.read_deadline("a") == float("inf")
    assert await harness.read_document_ttl_ms("a") == -1
    assert await harness.store.reader.read_check("a") == (None, None)


async def test_service_can_become_permanent_and_expire_again(harness: StoreHarness) -> None:
    await harness.write_service("a", ttl=60)
    await harness.write_service("a", 1, ttl=0, renew=False)
    assert await harness.read_deadline("a") == float("inf")
    assert await harness.read_document_ttl_ms("a") == -1

    await harness.write_service("a", 2, ttl=60, renew=False)

    deadline = await harness.read_deadline("a")
    assert deadline is not None
    assert abs(await harness.now_ms() + 60_000 - deadline) < SLACK_MS
    assert 0 < await harness.read_document_ttl_ms("a") <= 60_000


async def test_update_does_not_revive_an_expired_lease(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.set_deadline("a", await harness.now_ms() - 10)

    assert await harness.write_service("a", 1, renew=False) == 2

    assert await harness.read_document("a") is None
    assert (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).removed == ["a"]


# Touching a service.


async def test_touch_rewrites_the_document_without_a_change(harness: StoreHarness) -> None:
    await harness.write_service("a")
    document = await harness.read_document("a")
    events, stored = await harness.read_events(), await harness.read_record("a")
    await harness.client.delete(harness.store.keys.document_prefix + "a")

    assert await harness.touch_service("a", 1) == 1

    assert await harness.read_document("a") == document
    assert (await harness.read_events(), await harness.read_record("a"), await harness.read_revision()) == (
        events,
        stored,
        1,
    )


# Deleting a service.


async def test_delete_leaves_only_its_event(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.store.writer.write_check("a", b"check", expected=1)

    assert await harness.delete_service("a", 1) == 2

    keys = harness.store.keys
    assert (await harness.read_contents()).keys() <= {key.encode() for key in (keys.revision, keys.epoch, keys.events)}
    assert [event.type for event in await harness.read_events()] == [REGISTERED, UNREGISTERED]


async def test_deleted_name_can_be_registered_again(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.delete_service("a", 1)

    assert await harness.write_service("a") == 3


# Notices.


async def test_notice_is_an_event_without_a_service(harness: StoreHarness) -> None:
    await harness.write_service("a")
    records = await harness.client.hgetall(harness.store.keys.records)
    before = await harness.now_ms()

    assert await harness.publish_notice("half of all fail: größer als 機") == 2

    [_, event] = await harness.read_events()
    assert event == StoredEvent(
        harness.epoch, 2, REGISTRY_ERROR, HEALTH_CHECK, event.at_ms, "", b"", b"", "half of all fail: größer als 機"
    )
    assert 0 <= event.at_ms - before < SLACK_MS
    assert await harness.store.reader.read_event(2) == event
    assert await harness.store.reader.wait_for_events(1) == [event]
    assert await harness.store.reader.resolve_head() == Position(harness.epoch, 2)
    assert await harness.client.hgetall(harness.store.keys.records) == records
    assert await harness.write_service("b") == 3


async def test_event_written_by_an_older_version_has_no_error(harness: StoreHarness) -> None:
    await harness.write_service("a")
    [event] = await harness.read_events()
    assert event.error == ""

    entries: Any = await harness.client.xrange(harness.store.keys.events)
    [(_, fields)] = entries
    assert fields.pop(b"x") == b""
    await harness.client.xadd(harness.store.keys.events, fields, id="2-0")
    [_, older] = await harness.read_events()
    assert older == event._replace(revision=2)


async def test_notice_of_another_epoch_is_refused_and_writes_nothing(harness: StoreHarness) -> None:
    await harness.write_service("a")
    contents = await harness.read_contents()
    assert isinstance(await harness.publish_notice("trouble", epoch="another"), EpochChanged)
    assert await harness.read_contents() == contents


# Members.


async def test_members_are_announced_processes_until_removed(harness: StoreHarness) -> None:
    assert await harness.store.writer.announce_member("b", 60) == ["b"]
    assert sorted(await harness.store.writer.announce_member("a", 60)) == ["a", "b"]
    assert sorted(await harness.store.writer.announce_member("b", 60)) == ["a", "b"]

    await harness.store.writer.remove_member("b", 60)
    await harness.store.writer.remove_member("unknown", 60)

    assert await harness.read_members() == {"a"}
    assert await harness.store.writer.announce_member("a", 60) == ["a"]


@pytest.mark.parametrize(("announced_s", "live"), [(-50, True), (-70, False), (50, True), (70, False)], ids=str)
async def test_member_announced_over_a_period_away_is_removed(
    harness: StoreHarness,
    announced_s: int,
    live: bool,  # noqa: FBT001
) -> None:
    """An announcement is ahead if the clock of Redis was set back."""
    await harness.client.zadd(harness.store.keys.members, {"other": await harness.now_ms() + announced_s * 1000})
    assert ("other" in await harness.store.writer.announce_member("a", 60)) is live
    assert ("other" in await harness.read_members()) is live


async def test_member_is_announced_at_the_new_time_after_a_clock_change(harness: StoreHarness) -> None:
    await harness.client.zadd(harness.store.keys.members, {"a": await harness.now_ms() + 3_600_000})
    assert await harness.store.writer.announce_member("a", 60) == ["a"]
    score = await harness.client.zscore(harness.store.keys.members, "a")
    assert score is not None
    assert abs(await harness.now_ms() - float(score)) < SLACK_MS


# Revisions of all sizes, which the scripts encode and decode.


@pytest.mark.parametrize(
    "revision",
    [1, 2, 126, 127, 128, 129, 16_383, 16_384, 2_097_151, 2_097_152, 2**31 - 1, 2**31, 2**32, 2**40, 2**52],
)
async def test_revision_of_any_size_is_encoded_and_decoded_exactly(harness: StoreHarness, revision: int) -> None:
    await harness.client.set(harness.store.keys.revision, revision - 1)

    assert await harness.write_service("a") == revision
    stored = await harness.read_record("a")
    assert stored == small_service("a", revision=revision)
    assert (await harness.read_document("a"))["revision"] == revision
    assert await harness.store.reader.resolve_head() == Position(harness.epoch, revision)
    assert await harness.write_service("a", expected=revision - 1 or 7) == Conflict(revision, revision)
    assert await harness.touch_service("a", revision) == revision
    assert await harness.write_service("a", expected=revision) == revision + 1
    assert await harness.delete_service("a", expected=revision + 1) == revision + 2
    assert [event.revision for event in await harness.read_events()] == [revision, revision + 1, revision + 2]


async def test_revision_is_decoded_after_any_preceding_field(harness: StoreHarness) -> None:
    # The ttl precedes the revision; its bytes can equal the revision's tag or a part of a varint.
    for revision, seconds in enumerate((72, 200, 9_288, 18_504, 86_399), start=1):
        service = small_service(f"s{seconds}")
        service.ttl.FromSeconds(seconds)
        await harness.write_service(service)
        assert await harness.touch_service(service.name, revision) == revision


# Stream and replicas.


async def test_stream_keeps_the_configured_number_of_events(
    redis_process: RedisProcess,
) -> None:
    harness = await open_harness(redis_process, events_max_length=150)
    for i in range(10):
        await asyncio.gather(*(harness.write_service(f"s{i}-{j}") for j in range(100)))

    kept = [event.revision for event in await harness.read_events()]

    assert kept == list(range(1001 - len(kept), 1001))
    assert 150 <= len(kept) <= 150 + 101  # the stream is trimmed by whole nodes
    await harness.client.aclose()
    await harness.store.close()


@pytest.mark.slow
async def test_change_without_enough_replicas_is_made_but_reported(redis_process: RedisProcess) -> None:
    harness = await open_harness(redis_process, timeout=5.0, wait_replicas=2, wait_timeout=0.02)

    with pytest.raises(NotReplicated, match=r"as revision 1, but only 0 of 2 replicas confirmed it") as caught:
        await harness.write_service("a")
    assert (caught.value.revision, caught.value.confirmed, caught.value.wanted) == (1, 0, 2)
    assert await harness.write_service("a") == Conflict(1, 1)  # nothing was written, so there is nothing to confirm
    with pytest.raises(NotReplicated):
        await harness.touch_service("a", 1)
    with pytest.raises(NotReplicated, match="as revision 2"):
        await harness.delete_service("a", 1)
    assert await harness.store.writer.renew_leases(["a"]) == ["a"]
    assert await harness.store.reader.resolve_head() == Position(harness.epoch, 2)

    await harness.client.aclose()
    await harness.store.close()
