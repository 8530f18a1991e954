import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.errors import StoreUnavailable
from registry_server.health import ResultWriter
from registry_server.runtime.tasks import cancel
from registry_server.store import ProbeResult, RedisStore, StoreLimits
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service

TIMEOUT = 20.0


class Store(RedisStore):
    """Records the batches that are written."""

    def __init__(self, url: str, limits: StoreLimits) -> None:
        super().__init__(url, timeout=1.0, limits=limits)
        self.written: list[list[ProbeResult]] = []
        self.failures = 0
        self._write_checks = self.writer.write_checks
        self.writer.write_checks = self._write_and_record  # type: ignore[method-assign]

    async def register(self, *names: str, ttl: float = 60) -> None:
        head = await self.reader.resolve_head()
        for name in names:
            outcome = await self.writer.write_service(
                small_service(name),
                seen=head,
                expected=0,
                type=EventType.EVENT_TYPE_SERVICE_REGISTERED,
                reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
                ttl=ttl,
                renew=True,
            )
            assert isinstance(outcome, int)

    async def _write_and_record(self, results: Sequence[ProbeResult]) -> None:
        self.written.append(list(results))
        try:
            await self._write_checks(results)
        except StoreUnavailable:
            self.failures += 1
            raise

    async def read_health(self, name: str) -> bytes | None:
        return (await self.reader.read_check(name))[0]


@pytest.fixture
async def store(redis: RedisProcess, limits: StoreLimits) -> AsyncIterator[Store]:
    opened = Store(redis.url, limits)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def writing(store: Store) -> AsyncIterator[ResultWriter]:
    writer = ResultWriter(store)
    task = asyncio.create_task(writer.run())
    try:
        yield writer
        assert not task.done(), "the writer ended by itself"
    finally:
        await cancel([task])


async def wait_for_check(store: Store, name: str, health: bytes) -> None:
    async with asyncio.timeout(TIMEOUT):
        while await store.read_health(name) != health:
            await asyncio.sleep(0.005)


async def test_results_are_written_in_batches(store: Store) -> None:
    names = [f"s{i}" for i in range(100)]
    await store.register(*names)
    async with writing(store) as writer:
        for name in names:
            writer.add_result(name, name.encode(), renew=False)
        for name in names:
            await wait_for_check(store, name, name.encode())
    assert len(store.written) == 1
    assert [result.name for result in store.written[0]] == names


async def test_only_the_newest_pending_result_of_a_service_is_written(store: Store) -> None:
    await store.register("a", "b")
    writer = ResultWriter(store)
    writer.add_result("a", b"first", renew=True)
    writer.add_result("b", b"only", renew=False)
    writer.add_result("a", b"second", renew=False)
    await writer.flush()
    [[a, b]] = store.written
    assert (a.name, a.health, b.name) == ("a", b"second", "b")
    assert (await store.read_health("a"), await store.read_health("b")) == (b"second", b"only")


async def test_result_is_written_once(store: Store) -> None:
    await store.register("a")
    writer = ResultWriter(store)
    writer.add_result("a", b"one", renew=False)
    await writer.flush()
    await writer.flush()
    assert len(store.written) == 1
    writer.add_result("a", b"two", renew=False)
    await writer.flush()
    assert await store.read_health("a") == b"two"


async def test_writer_writes_later_results_too(store: Store) -> None:
    await store.register("a")
    async with writing(store) as writer:
        for health in (b"one", b"two", b"three"):
            writer.add_result("a", health, renew=False)
            await wait_for_check(store, "a", health)
    assert len(store.written) == 3


async def test_flush_without_results_sends_nothing(store: Store) -> None:
    await ResultWriter(store).flush()
    assert store.written == []


@pytest.mark.store_limits(checks_batch=3)
async def test_more_results_than_one_batch_are_all_written(store: Store) -> None:
    names = [f"s{i}" for i in range(10)]
    await store.register(*names)
    writer = ResultWriter(store)
    for name in names:
        writer.add_result(name, name.encode(), renew=False)
    await writer.flush()
    assert [await store.read_health(name) for name in names] == [name.encode() for name in names]


@pytest.mark.own_redis
async def test_results_of_a_store_outage_are_dropped_and_later_ones_written(redis: RedisProcess, store: Store) -> None:
    await store.register("a")
    async with writing(store) as writer:
        writer.add_result("a", b"before", renew=False)
        await wait_for_check(store, "a", b"before")
        redis.kill()
        writer.add_result("a", b"lost", renew=False)
        async with asyncio.timeout(TIMEOUT):
            while not store.failures:
                await asyncio.sleep(0.005)
        await redis.restart()
        await store.reconnect()
        assert await store.read_health("a") == b"before"

        writer.add_result("a", b"after", renew=False)
        await wait_for_check(store, "a", b"after")
    assert [result.health for results in store.written[-1:] for result in results] == [b"after"]


@pytest.mark.own_redis
async def test_flush_raises_if_the_store_is_unavailable(redis: RedisProcess, store: Store) -> None:
    writer = ResultWriter(store)
    redis.kill()
    writer.add_result("a", b"lost", renew=False)
    with pytest.raises(StoreUnavailable):
        await writer.flush()
    await writer.flush()  # the failed result was dropped


async def test_full_queue_accepts_only_newer_results_of_pending_services(store: Store) -> None:
    writer = ResultWriter(store, max_pending=2)
    for name in "abc":
        writer.add_result(name, b"old", renew=False)
    writer.add_result("a", b"new", renew=False)
    await writer.flush()
    assert store.written == [[ProbeResult("a", b"new", renew=False), ProbeResult("b", b"old", renew=False)]]


async def test_replaced_result_keeps_its_lease_renewal(store: Store) -> None:
    await store.register("a")
    writer = ResultWriter(store)
    commands: Any = store._client
    await commands.zadd(store.keys.leases, {"a": 1})
    writer.add_result("a", b"it succeeded", renew=True)
    writer.add_result("a", b"and failed right after", renew=False)
    await writer.flush()
    assert await store.read_health("a") == b"and failed right after"
    assert await commands.zscore(store.keys.leases, "a") > 1
