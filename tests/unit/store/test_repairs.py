"""``Repairs``: the turn to repair, and restored services and events."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from ossa.registry.v1.event_pb2 import EventReason
from registry_server.security.identity import Claim
from registry_server.store import (
    EpochChanged,
    Position,
    RedisStore,
    RestoredService,
    StoredEvent,
    StoreLimits,
    Turn,
    TurnLost,
)
from tests.support.followers import CLIENT_REQUEST, REGISTERED, Writer, writing
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service

GATHER = 0.1
LEASE_EXPIRED = EventReason.EVENT_REASON_LEASE_EXPIRED


@pytest.fixture
def limits() -> StoreLimits:
    return StoreLimits(repair_gather_seconds=GATHER, repair_turn_seconds=0.5)


@pytest.fixture
async def writer(redis_process: RedisProcess, limits: StoreLimits) -> AsyncIterator[Writer]:
    async with writing(redis_process.url, limits) as opened:
        yield opened


@pytest.fixture
async def other(redis_process: RedisProcess, limits: StoreLimits) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_process.url, timeout=5.0, limits=limits)
    await store.open()
    yield store
    await store.close()


async def acquire_turn(store: RedisStore, known: Position) -> Turn:
    async with asyncio.timeout(10):
        while not isinstance(
            turn := await store.repairs.request_turn(known, (await store.reader.read_position()).epoch), Turn
        ):
            await asyncio.sleep(0.02)
    return turn


async def test_changes_are_refused_if_the_store_is_behind_the_caller(writer: Writer) -> None:
    await writer.write_services("a")
    store, epoch = writer.store, writer.epoch
    service = small_service("a", version="2.0.0")
    seen = Position(epoch, 2)
    outcomes = [
        await store.writer.write_service(
            service,
            seen=seen,
            expected=1,
            type=REGISTERED,
            reason=CLIENT_REQUEST,
            ttl=9,
            renew=True,
        ),
        await store.writer.touch_service(service, seen=seen, expected=1, ttl=9, renew=True),
        await store.writer.delete_service("a", seen=seen, expected=1, reason=CLIENT_REQUEST),
        await store.writer.publish_notice("trouble", seen=seen, reason=LEASE_EXPIRED),
    ]
    assert [type(outcome) for outcome in outcomes] == [EpochChanged] * 4
    assert await store.reader.read_position() == Position(epoch, 1)
    seen = Position(epoch, 1)
    assert await store.writer.delete_service("a", seen=seen, expected=1, reason=CLIENT_REQUEST) == 2


@pytest.mark.parametrize("ahead", [Position("another", 1), None], ids=["epoch", "revision"])
async def test_store_behind_the_sweeping_process_is_not_swept(writer: Writer, ahead: Position | None) -> None:
    await writer.store.writer.sweep_leases(LEASE_EXPIRED)
    await writer.write_services("a", ttl=0.001)
    await asyncio.sleep(0.01)
    assert (await writer.store.writer.sweep_leases(LEASE_EXPIRED, ahead or Position(writer.epoch, 2))).removed == []
    assert (await writer.store.writer.sweep_leases(LEASE_EXPIRED, Position(writer.epoch, 1))).removed == ["a"]


async def test_process_with_the_newest_revision_receives_the_turn(writer: Writer, other: RedisStore) -> None:
    await writer.write_services("a")
    first = await writer.store.repairs.request_turn(Position(writer.epoch, 5), writer.epoch)
    assert first == GATHER
    assert await writer.store.reader.read_position() == Position("", 1)
    turn = await acquire_turn(other, Position(writer.epoch, 7))
    assert turn == Turn(Position(writer.epoch, 1), "")
    wait = await writer.store.repairs.request_turn(Position(writer.epoch, 5), "")
    assert isinstance(wait, float)
    with pytest.raises(TurnLost):
        await writer.store.repairs.restore_services([RestoredService("b", b"x", 0, "")], "plan")
    assert await writer.store.reader.resolve_head() == Position("", 1), "no epoch may start during a repair"
    seen = Position(writer.epoch, 0)
    refused = await writer.store.writer.delete_service("a", seen=seen, expected=1, reason=CLIENT_REQUEST)
    assert isinstance(refused, EpochChanged)
    known = Position(writer.epoch, 7)
    await other.repairs.finish_repair(known, restart=False, known=known, common=1)
    assert await writer.store.reader.read_position() == known


async def test_turn_is_refused_if_the_epoch_has_changed(writer: Writer) -> None:
    assert await writer.store.repairs.request_turn(Position(writer.epoch, 5), "") == 0
    assert await writer.store.reader.read_position() == Position(writer.epoch, 0)


@pytest.mark.slow
async def test_plan_of_an_abandoned_repair_is_returned_with_the_turn(writer: Writer, other: RedisStore) -> None:
    known = Position(writer.epoch, 5)
    await acquire_turn(writer.store, known)
    await writer.store.repairs.restore_services([RestoredService("a", b"record", 0, "")], "the plan")
    await asyncio.sleep(0.6)
    turn = await acquire_turn(other, known)
    assert turn == Turn(Position(writer.epoch, 0), "the plan")
    with pytest.raises(TurnLost):
        await writer.store.repairs.finish_repair(known, restart=True, known=known, common=0)


async def test_restored_services_and_events_equal_the_originals(writer: Writer) -> None:
    keys, store = writer.store.keys, writer.store
    writer.claim = Claim("alice")
    await writer.write_services("hers", ttl=60)
    writer.claim = Claim("bob")
    await writer.write_services("taken", "gone")
    record = small_service("taken")
    record.revision = 300
    wire = record.SerializeToString()
    known = Position(writer.epoch, 9)
    await acquire_turn(store, known)
    services = [
        RestoredService("taken", wire, 60, "alice"),
        RestoredService("gone", b"", 0, ""),
        RestoredService("new", wire, 0, ""),
    ]
    await store.repairs.restore_services(services, "")
    event = StoredEvent(writer.epoch, 9, REGISTERED, CLIENT_REQUEST, 77, "taken", wire, b"before", "", "alice")
    await store.repairs.restore_events([event], restart=True)
    await store.repairs.finish_repair(known, restart=False, known=known, common=3)

    client = store._client
    assert await client.hgetall(keys.owners) == {b"hers": b"alice", b"taken": b"alice"}
    assert await client.hgetall(keys.owned) == {b"alice": b"2"}
    assert await client.hget(keys.records, "taken") == wire
    assert await client.zscore(keys.leases, "new") == float("inf")
    assert await client.smembers(keys.bare) == {b"taken", b"new"}
    assert not await client.exists(keys.document_prefix + "gone")
    assert await store.reader.read_event(9) == event
    assert await store.reader.read_event(3) is None
    assert await store.reader.resolve_head() == known
    assert not await client.exists(keys.repair, keys.merged)


async def test_merged_epoch_is_recorded(writer: Writer) -> None:
    known = Position(writer.epoch, 9)
    assert await writer.store.repairs.read_merge(writer.epoch) == (0, 0)
    await acquire_turn(writer.store, known)
    await writer.store.repairs.finish_repair(Position("next", 12), restart=True, known=known, common=3)
    assert await writer.store.repairs.read_merge(writer.epoch) == (3, 9)
    assert await writer.store.reader.read_position() == Position("next", 12)
