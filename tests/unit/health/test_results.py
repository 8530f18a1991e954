import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.errors import StoreUnavailable
from registry_server.health import ResultWriter
from registry_server.health import results as module
from registry_server.runtime.tasks import cancel
from registry_server.store import ProbeResult, RedisStore, StoreLimits
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service

TIMEOUT = 20.0


class Store(RedisStore):
    """Remembers what was written."""

    def __init__(self, url: str, limits: StoreLimits) -> None:
        super().__init__(url, timeout=1.0, limits=limits)
        self.written: list[list[ProbeResult]] = []
        self.failures = 0
        self._write_checks = self.writer.write_checks
        self.writer.write_checks = self._write_and_record  # type: ignore[method-assign]

    async def register(self, *names: str, ttl: float = 60) -> None:
        epoch = (await self.reader.resolve_head()).epoch
        for name in names:
            outcome = await self.writer.write_service(
                small_service(name),
                epoch=epoch,
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

    async def check(self, name: str) -> bytes | None:
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
        assert not task.done(), "it ended by itself"
    finally:
        await cancel([task])


async def shows(store: Store, name: str, health: bytes | None) -> None:
    async with asyncio.timeout(TIMEOUT):
        while await store.check(name) != health:
            await asyncio.sleep(0.005)


async def test_results_that_gather_are_written_together(store: Store) -> None:
    names = [f"s{i}" for i in range(100)]
    await store.register(*names)
    async with writing(store) as writer:
        for name in names:
            writer.add(name, name.encode(), renew=False)
        for name in names:
            await shows(store, name, name.encode())
    assert len(store.written) == 1
    assert [result.name for result in store.written[0]] == names


async def test_of_results_that_wait_the_newest_of_each_service_is_written(store: Store) -> None:
    await store.register("a", "b")
    writer = ResultWriter(store)
    writer.add("a", b"first", renew=True)
    writer.add("b", b"only", renew=False)
    writer.add("a", b"second", renew=False)
    await writer.flush()
    [[a, b]] = store.written
    assert (a.name, a.health, b.name) == ("a", b"second", "b")
    assert (await store.check("a"), await store.check("b")) == (b"second", b"only")


async def test_what_is_written_is_not_written_again(store: Store) -> None:
    await store.register("a")
    writer = ResultWriter(store)
    writer.add("a", b"one", renew=False)
    await writer.flush()
    await writer.flush()
    assert len(store.written) == 1
    writer.add("a", b"two", renew=False)
    await writer.flush()
    assert await store.check("a") == b"two"


async def test_it_goes_on_for_as_long_as_it_runs(store: Store) -> None:
    await store.register("a")
    async with writing(store) as writer:
        for health in (b"one", b"two", b"three"):
            writer.add("a", health, renew=False)
            await shows(store, "a", health)
    assert len(store.written) == 3


async def test_nothing_to_write_is_no_round_trip(store: Store) -> None:
    await ResultWriter(store).flush()
    assert store.written == []


@pytest.mark.store_limits(checks_batch=3)
async def test_more_than_a_batch_is_written_too(store: Store) -> None:
    names = [f"s{i}" for i in range(10)]
    await store.register(*names)
    writer = ResultWriter(store)
    for name in names:
        writer.add(name, name.encode(), renew=False)
    await writer.flush()
    assert [await store.check(name) for name in names] == [name.encode() for name in names]


@pytest.mark.own_redis
async def test_while_the_store_is_away_results_are_dropped_and_writing_goes_on_when_it_is_back(
    redis: RedisProcess, store: Store
) -> None:
    await store.register("a")
    async with writing(store) as writer:
        writer.add("a", b"before", renew=False)
        await shows(store, "a", b"before")
        redis.kill()
        writer.add("a", b"lost", renew=False)
        async with asyncio.timeout(TIMEOUT):
            while not store.failures:
                await asyncio.sleep(0.005)
        await redis.restart()
        await store.reconnect()
        assert await store.check("a") == b"before"

        writer.add("a", b"after", renew=False)
        await shows(store, "a", b"after")
    assert [result.health for results in store.written[-1:] for result in results] == [b"after"]


@pytest.mark.own_redis
async def test_whoever_flushes_learns_that_the_store_is_away(redis: RedisProcess, store: Store) -> None:
    writer = ResultWriter(store)
    redis.kill()
    writer.add("a", b"lost", renew=False)
    with pytest.raises(StoreUnavailable):
        await writer.flush()
    await writer.flush()  # nothing is left of it


async def test_what_waits_is_bounded_and_what_waits_already_can_still_be_replaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    writer = ResultWriter(store)
    for name in "abc":
        writer.add(name, b"old", renew=False)
    writer.add("a", b"new", renew=False)
    await writer.flush()
    assert store.written == [[ProbeResult("a", b"new", renew=False), ProbeResult("b", b"old", renew=False)]]


async def test_a_lease_that_was_to_be_renewed_is_renewed_though_a_newer_result_does_not(store: Store) -> None:
    await store.register("a")
    writer = ResultWriter(store)
    commands: Any = store._client
    await commands.zadd(store.keys.leases, {"a": 1})
    writer.add("a", b"it succeeded", renew=True)
    writer.add("a", b"and failed right after", renew=False)
    await writer.flush()
    assert await store.check("a") == b"and failed right after"
    assert await commands.zscore(store.keys.leases, "a") > 1
