"""The queue of status changes, with commits that the test delays."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ossa.registry.v1.service_pb2 import Health, HealthStatus
from registry_server.errors import Overloaded, StoreUnavailable
from registry_server.health.evaluator import Verdict
from registry_server.health.transitions import Transitions
from registry_server.model.record import Record
from registry_server.runtime.tasks import cancel
from tests.support.samples import small_service
from tests.support.waiting import until

HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY


def verdict(name: str, error: str = "", owner: str = "") -> Verdict:
    record = Record(small_service(name).SerializeToString())
    health = Health(status=HealthStatus.HEALTH_STATUS_UNHEALTHY, error=error)
    return Verdict(record, HEALTHY, health, renew=False, started=0.0, connection=1, owner=owner)


class Store:
    """Records commits, which are delayed while ``open`` is cleared."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.committed: list[tuple[str, str]] = []
        self.in_flight: Counter[str] = Counter()
        self.max_in_flight = 0
        self.failure: Exception | None = None

    async def commit(self, verdict: Verdict) -> bool:
        name = verdict.record.name
        self.in_flight[name] += 1
        assert self.in_flight[name] == 1, "commits of one service must not overlap"
        self.max_in_flight = max(self.max_in_flight, self.in_flight.total())
        await self.open.wait()
        self.in_flight[name] -= 1
        if self.failure is not None:
            raise self.failure
        self.committed.append((name, verdict.health.error))
        return True


@asynccontextmanager
async def transitions(store: Store, *, max_concurrent: int = 64) -> AsyncIterator[Transitions]:
    subject = Transitions(store.commit, max_concurrent=max_concurrent, retry_seconds=0.05)
    running = asyncio.create_task(subject.run())
    await asyncio.sleep(0)
    try:
        yield subject
    finally:
        await cancel([running])


async def test_newest_pending_change_is_committed_after_the_one_in_flight() -> None:
    store = Store()
    async with transitions(store) as subject:
        store.open.clear()
        subject.add_transition("a", verdict("a", "first"))
        await until(lambda: store.in_flight.total() == 1)
        subject.add_transition("a", verdict("a", "second"))
        subject.add_transition("a", verdict("a", "third"))
        subject.add_transition("b", verdict("b"))
        await until(lambda: store.in_flight.total() == 2)
        store.open.set()
        await until(lambda: len(store.committed) == 3)
    assert [error for name, error in store.committed if name == "a"] == ["first", "third"]


async def test_discarded_change_is_not_committed_and_can_be_added_again() -> None:
    store = Store()
    async with transitions(store) as subject:
        store.open.clear()
        subject.add_transition("a", verdict("a", "first"))
        await until(lambda: store.in_flight.total() == 1)
        subject.add_transition("a", verdict("a", "second"))
        subject.discard_transition("a")
        subject.add_transition("b", verdict("b"))
        subject.discard_transition("b")
        subject.discard_transition("c")
        store.open.set()
        await until(lambda: store.in_flight.total() == 0)
        subject.add_transition("b", verdict("b", "again"))
        await until(lambda: len(store.committed) == 2)
    assert store.committed == [("a", "first"), ("b", "again")]


async def test_concurrent_commits_are_bounded_and_all_changes_are_committed() -> None:
    store = Store()
    async with transitions(store, max_concurrent=6) as subject:
        store.open.clear()
        for i in range(20):
            subject.add_transition(f"s{i}", verdict(f"s{i}"))
        await until(lambda: store.max_in_flight == 3)
        store.open.set()
        await until(lambda: len(store.committed) == 20)
    assert store.max_in_flight == 3


async def test_discarded_changes_do_not_accumulate_while_the_store_hangs() -> None:
    store = Store()
    async with transitions(store, max_concurrent=1) as subject:
        store.open.clear()
        subject.add_transition("held", verdict("held"))
        await until(lambda: store.in_flight.total() == 1)
        for _ in range(100):
            for name in ("held", "a"):
                subject.add_transition(name, verdict(name))
                subject.discard_transition(name)
        assert subject._slots.waiting("") == 0
        subject.add_transition("a", verdict("a"))
        store.open.set()
        await until(lambda: [name for name, _ in store.committed] == ["held", "a"])


@pytest.mark.slow
@pytest.mark.parametrize("failure", [StoreUnavailable("down"), ValueError("a bug")])
async def test_failed_commit_affects_no_other_change(failure: Exception) -> None:
    store = Store()
    async with transitions(store, max_concurrent=2) as subject:
        store.failure = failure
        for i in range(5):
            subject.add_transition(f"s{i}", verdict(f"s{i}"))
        await asyncio.sleep(0)
        await until(lambda: not subject._pending)
        store.failure = None
        subject.add_transition("s0", verdict("s0", "again"))
        await until(lambda: ("s0", "again") in store.committed)


async def test_refused_change_is_repeated_until_a_newer_one_replaces_it() -> None:
    store = Store()
    async with transitions(store) as subject:
        store.failure = Overloaded("writes", 1, "too many writes")
        for name in "abc":
            subject.add_transition(name, verdict(name, "first"))
        await until(lambda: len(subject._refused) == 3)
        subject.discard_transition("b")
        assert not subject.add_transition("c", verdict("c", "second")), "not repeated at once"
        store.failure = None
        await until(lambda: len(store.committed) == 2)
        await asyncio.sleep(0.2)
    assert sorted(store.committed) == [("a", "first"), ("c", "second")]


async def test_commits_of_one_owner_that_hang_delay_no_other_owner() -> None:
    store = Store()
    async with transitions(store, max_concurrent=8) as subject:
        store.open.clear()
        for i in range(1_000):
            subject.add_transition(f"s{i}", verdict(f"s{i}", owner="greedy"))
        await until(lambda: store.in_flight.total() == 4)
        subject.add_transition("other", verdict("other", owner="other"))
        await until(lambda: store.in_flight["other"] == 1)
