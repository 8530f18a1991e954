"""``Loads``: the newest load of each service, shared through Redis."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import NoReturn

import pytest
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis

from ossa.registry.v1.service_pb2 import Load
from registry_server.catalog import Loads, Replica
from registry_server.errors import StoreUnavailable
from registry_server.model.record import Record
from registry_server.store import Position, RedisStore
from tests.support.changes import change
from tests.support.manual_clock import ManualClock
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service


def record(instance_id: str, name: str = "a", ttl_seconds: int = 30) -> Record:
    ttl = Duration(seconds=ttl_seconds)
    return Record(small_service(name, instance_id=instance_id, ttl=ttl).SerializeToString())


class Process:
    """A process of a registry, with a clock of its own."""

    def __init__(self, store: RedisStore | None = None) -> None:
        self.store, self.clock, self.replica = store, ManualClock(), Replica(10)
        self.replica.start_at((), Position("epoch", 0))
        self.loads = Loads(self.replica, default_ttl=30, clock=lambda: round(self.clock() * 1e9), monotonic=self.clock)

    async def exchange(self) -> None:
        assert self.store is not None
        await self.loads.exchange(self.store)

    def apply(self, after: Record | None) -> None:
        self.replica.apply_change(change(self.replica.revision + 1, self.replica.records.get("a"), after))

    def found(self) -> tuple[int, int] | None:
        load = self.loads.find(self.replica.records["a"])
        return None if load is None else (load.in_flight, load.capacity)


def alone() -> Process:
    """Return a process that shares nothing."""
    process = Process()
    process.apply(record("one"))
    return process


@pytest.fixture
async def store(redis: RedisProcess) -> AsyncIterator[RedisStore]:
    opened = RedisStore(redis.url, key_prefix="ossa:services", timeout=10.0)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def processes(store: RedisStore) -> list[Process]:
    found = [Process(store), Process(store)]
    for process in found:
        process.apply(record("one"))
    return found


@pytest.mark.parametrize(("lease_seconds", "kept"), [(10, 10), (30, 30), (60, 60), (300, 60), (0, 60)])
def test_load_is_forgotten_after_one_lease_and_at_most_a_minute(lease_seconds: int, kept: int) -> None:
    process = alone()
    process.apply(record("one", ttl_seconds=lease_seconds))
    process.loads.add_reports([("a", "one", 3, 8)])
    reported = Load(in_flight=3, capacity=8)
    reported.reported_at.FromSeconds(1000)
    process.clock.now += kept
    assert process.loads.find(process.replica.records["a"]) == reported
    process.clock.now += 0.1
    assert process.found() is None


def test_takeover_and_removal_forget_the_load() -> None:
    process = alone()
    for after in (record("two"), None):
        process.loads.add_reports([("a", "", 3, 8)])
        assert process.found() == (3, 8)
        process.apply(after)
        process.apply(record("one"))
        assert process.found() is None


def test_report_of_another_instance_changes_nothing() -> None:
    process = alone()
    process.loads.add_reports([("a", "two", 3, 8), ("unknown", "", 1, 1)])
    assert process.found() is None


async def test_processes_exchange_loads_with_their_age(processes: list[Process]) -> None:
    first, second = processes
    for in_flight in (3, 4):
        first.loads.add_reports([("a", "one", in_flight, 8)])
        await first.exchange()
        await second.exchange()
        second.clock.now += 1
        assert first.found() == second.found() == (in_flight, 8)
    late = Process(first.store)  # it starts when the others have exchanged their loads
    late.apply(record("one"))
    await late.exchange()
    assert late.found() == (4, 8)
    late.clock.now += 30.1
    assert late.found() is None


async def test_load_that_arrives_before_its_registration_is_kept(processes: list[Process]) -> None:
    first, second = processes
    first.apply(record("two"))
    first.loads.add_reports([("a", "two", 5, 0)])
    await first.exchange()
    await second.exchange()
    assert second.found() is None
    second.apply(record("two"))
    assert second.found() == (5, 0)


async def test_many_loads_are_exchanged_in_parts(processes: list[Process]) -> None:
    first, second = processes
    names = [f"s{i}" for i in range(2500)]
    for process in processes:
        process.replica.load_records([record("one", name) for name in names])
    first.loads.add_reports((name, "one", i, 9) for i, name in enumerate(names))
    await first.exchange()
    await second.exchange()
    found = [second.loads.find(second.replica.records[name]) for name in names]
    assert [load and load.in_flight for load in found] == list(range(2500))


async def test_entries_of_other_programs_are_skipped(processes: list[Process], store: RedisStore) -> None:
    first, second = processes
    for text in ("{", "5", "[[1]]", '[["a","one",-1,0]]', '[["a","one",true,0]]', '[["a",1,1,0]]', "[[[],[],1,1]]"):
        await store.writer.exchange_loads("0", "other", text.encode(), 30_000, 1)
    await store.writer.exchange_loads("0", "other", json.dumps([["a", "one", 1 << 31, 0]]).encode(), 30_000, 1)
    first.loads.add_reports([("a", "one", 2, 0)])
    await first.exchange()
    await second.exchange()
    assert second.found() == (2, 0)


async def test_exchange_continues_after_redis_lost_its_data(processes: list[Process], redis: RedisProcess) -> None:
    first, second = processes
    for in_flight in (1, 2):
        first.loads.add_reports([("a", "one", in_flight, 0)])
        await first.exchange()
        await second.exchange()
        second.clock.now += 1
        assert second.found() == (in_flight, 0)
        async with Redis.from_url(redis.url) as client:
            await client.flushall()


async def test_exchange_continues_if_the_clock_of_redis_was_set_back(processes: list[Process]) -> None:
    first, second = processes
    second.loads._read_ms, second.loads._read_id = 1 << 45, f"{1 << 45}-0"
    await second.exchange()
    await asyncio.sleep(0.002)  # until the clock has advanced
    first.loads.add_reports([("a", "one", 1, 0)])
    await first.exchange()
    await second.exchange()
    assert second.found() == (1, 0)


async def test_loads_that_redis_did_not_accept_are_sent_later(
    processes: list[Process], store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = processes
    first.loads.add_reports([("a", "one", 1, 0)])
    with monkeypatch.context() as patch:
        patch.setattr(store.writer, "exchange_loads", unavailable)
        with pytest.raises(StoreUnavailable):
            await first.exchange()
    await first.exchange()
    await second.exchange()
    assert second.found() == (1, 0)


async def unavailable(*_: object) -> NoReturn:
    raise StoreUnavailable("Redis does not answer")
