"""``StoreReader``: epochs, records and events, read from real Redis servers."""

import asyncio

import pytest

from ossa.registry.v1.service_pb2 import Service
from registry_server.errors import StoreUnavailable
from registry_server.store import Position, StoreLimits
from tests.support.redis_process import RedisProcess
from tests.unit.store.harness import SLACK_MS, StoreHarness, open_harness

# Epoch and revision.


async def test_empty_store_starts_an_epoch_at_revision_0(harness: StoreHarness) -> None:
    first = await harness.store.reader.resolve_head()

    assert first == Position(harness.epoch, 0)
    assert len(first.epoch) == 16
    assert await harness.store.reader.resolve_head(Position("another", 99)) == first
    assert await harness.store.reader.resolve_head(first) == first


async def test_head_is_the_newest_revision(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.write_service("b")

    assert (
        await harness.store.reader.resolve_head()
        == await harness.store.reader.resolve_head(Position(harness.epoch, 1))
        == Position(harness.epoch, 2)
    )


async def test_store_behind_a_known_position_starts_a_new_epoch(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.write_service("b")

    head = await harness.store.reader.resolve_head(Position(harness.epoch, 3))

    assert head.revision == 2
    assert head.epoch != harness.epoch
    assert await harness.read_events() == []
    assert await harness.write_service("c", epoch=head.epoch) == 3
    assert [(event.epoch, event.revision) for event in await harness.read_events()] == [(head.epoch, 3)]


async def test_concurrent_detection_of_a_rollback_starts_one_epoch(harness: StoreHarness) -> None:
    heads = await asyncio.gather(*(harness.store.reader.resolve_head(Position(harness.epoch, 9)) for _ in range(5)))

    assert len(set(heads)) == 1
    assert heads[0].epoch != harness.epoch


async def test_rewritten_history_ends_once(harness: StoreHarness) -> None:
    await harness.write_service("a")
    assert await harness.store.reader.resolve_head(Position("another", 1), rewritten=True) == Position(harness.epoch, 1)

    heads = [await harness.store.reader.resolve_head(Position(harness.epoch, 1), rewritten=True) for _ in range(3)]

    assert len(set(heads)) == 1
    assert heads[0].epoch != harness.epoch
    assert heads[0].revision == 1
    assert await harness.read_events() == []


async def test_emptied_store_starts_a_new_epoch(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.client.flushall()

    head = await harness.store.reader.resolve_head()

    assert head.revision == 0
    assert head.epoch != harness.epoch


# Records and events.


@pytest.mark.store_limits(page=100)
async def test_scan_returns_all_records_in_pages(harness: StoreHarness) -> None:
    names = {f"s{i}" for i in range(700)}
    await asyncio.gather(*(harness.write_service(name) for name in names))

    pages = [page async for page in harness.store.reader.scan_records()]

    assert {Service.FromString(wire).name for page in pages for wire in page.values()} == names
    assert len(pages) > 1


async def test_empty_store_has_no_records_and_no_events(harness: StoreHarness) -> None:
    assert [page async for page in harness.store.reader.scan_records()] == [{}]
    assert await harness.read_events() == []
    assert await harness.store.reader.read_event(1) is None


@pytest.mark.store_limits(page=4)
async def test_scan_returns_events_in_order_up_to_a_revision(harness: StoreHarness) -> None:
    await asyncio.gather(*(harness.write_service(f"s{i}") for i in range(10)))

    everything = await harness.read_events()
    earlier = [event async for page in harness.store.reader.scan_events(until=7) for event in page]

    assert [event.revision for event in everything] == list(range(1, 11))
    assert earlier == everything[:7]
    backwards = [event async for page in harness.store.reader.scan_events(7, newest_first=True) for event in page]
    assert backwards == earlier[::-1]
    assert await harness.store.reader.read_event(7) == everything[6]
    assert await harness.store.reader.read_event(11) is None


@pytest.mark.store_limits(tail_block_seconds=0.02)
async def test_wait_for_events_returns_new_events_or_times_out(
    harness: StoreHarness, redis_process: RedisProcess
) -> None:
    assert await harness.store.reader.wait_for_events(0) == []
    blocking = await open_harness(redis_process, limits=StoreLimits(tail_block_seconds=20.0))
    waiting = asyncio.create_task(blocking.store.reader.wait_for_events(0))
    await asyncio.sleep(0.02)

    await harness.write_service("a")
    await harness.write_service("b")

    events = await waiting
    await blocking.client.aclose()
    await blocking.store.close()
    if len(events) == 1:
        events += await harness.store.reader.wait_for_events(1)
    assert [event.name for event in events] == ["a", "b"]
    assert [event.name for event in await harness.store.reader.wait_for_events(1)] == ["b"]


async def test_events_of_an_unverified_connection_are_refused(harness: StoreHarness) -> None:
    await harness.write_service("a")
    assert len(await harness.store.reader.wait_for_events(0)) == 1
    await harness.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # type: ignore[no-untyped-call]

    for _ in range(2):  # redis-py reconnects by itself when it finds the connection closed
        with pytest.raises(StoreUnavailable):
            await harness.store.reader.wait_for_events(0)
    await harness.store.reconnect()

    assert len(await harness.store.reader.wait_for_events(0)) == 1


async def test_wait_for_events_fails_if_redis_becomes_a_replica(
    harness: StoreHarness, redis_process: RedisProcess
) -> None:
    waiting = asyncio.create_task(harness.store.reader.wait_for_events(0))
    async with asyncio.timeout(SLACK_MS / 1000):
        while not (await harness.client.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0.01)

    await harness.client.replicaof("127.0.0.1", redis_process.port)

    with pytest.raises(StoreUnavailable):
        await waiting
