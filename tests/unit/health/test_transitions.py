"""What waits to be committed, with commits that the test holds up."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from ossa.registry.v1.service_pb2 import Health, HealthStatus
from registry_server.errors import StoreUnavailable
from registry_server.health import transitions as module
from registry_server.health.evaluator import Verdict
from registry_server.health.transitions import Transitions
from registry_server.model.record import Record
from registry_server.runtime.tasks import cancel
from tests.support.samples import small_service

TIMEOUT = 20.0
HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY


def ruling(name: str, error: str = "") -> Verdict:
    record = Record(small_service(name).SerializeToString())
    health = Health(status=HealthStatus.HEALTH_STATUS_UNHEALTHY, error=error)
    return Verdict(record, HEALTHY, health, renew=False, began=0.0, contact=1)


class Store:
    """Commits, once ``open`` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.committed: list[tuple[str, str]] = []
        self.under_way: Counter[str] = Counter()
        self.most = 0
        self.failure: Exception | None = None

    async def commit(self, what: Verdict) -> bool:
        name = what.record.name
        self.under_way[name] += 1
        assert self.under_way[name] == 1, "one after the other of each"
        self.most = max(self.most, self.under_way.total())
        await self.open.wait()
        self.under_way[name] -= 1
        if self.failure is not None:
            raise self.failure
        self.committed.append((name, what.health.error))
        return True


@asynccontextmanager
async def transitions(store: Store) -> AsyncIterator[Transitions]:
    subject = Transitions(store.commit)
    running = asyncio.create_task(subject.run())
    try:
        yield subject
    finally:
        await cancel([running])


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not holds():
            await asyncio.sleep(0.005)


async def test_of_what_waits_the_newest_is_committed_after_what_is_under_way() -> None:
    store = Store()
    async with transitions(store) as subject:
        store.open.clear()
        subject.put("a", ruling("a", "first"))
        await eventually(lambda: store.under_way.total() == 1)
        subject.put("a", ruling("a", "second"))
        subject.put("a", ruling("a", "third"))
        subject.put("b", ruling("b"))
        await eventually(lambda: store.under_way.total() == 2)
        store.open.set()
        await eventually(lambda: len(store.committed) == 3)
    assert [error for name, error in store.committed if name == "a"] == ["first", "third"]


async def test_what_is_discarded_is_not_committed_and_may_come_again() -> None:
    store = Store()
    async with transitions(store) as subject:
        store.open.clear()
        subject.put("a", ruling("a", "first"))
        await eventually(lambda: store.under_way.total() == 1)
        subject.put("a", ruling("a", "second"))
        subject.discard("a")
        subject.put("b", ruling("b"))
        subject.discard("b")
        subject.discard("c")
        store.open.set()
        await eventually(lambda: store.under_way.total() == 0)
        subject.put("b", ruling("b", "again"))
        await eventually(lambda: len(store.committed) == 2)
    assert store.committed == [("a", "first"), ("b", "again")]


async def test_commits_at_once_are_bounded_and_all_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    store = Store()
    async with transitions(store) as subject:
        store.open.clear()
        for i in range(20):
            subject.put(f"s{i}", ruling(f"s{i}"))
        await eventually(lambda: store.most == 3)
        store.open.set()
        await eventually(lambda: len(store.committed) == 20)
    assert store.most == 3


async def test_what_comes_and_goes_while_the_store_hangs_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    store = Store()
    async with transitions(store) as subject:
        store.open.clear()
        subject.put("held", ruling("held"))
        await eventually(lambda: store.under_way.total() == 1)
        for _ in range(100):
            for name in ("held", "a"):
                subject.put(name, ruling(name))
                subject.discard(name)
        assert subject._turns.qsize() <= 1
        subject.put("a", ruling("a"))
        store.open.set()
        await eventually(lambda: [name for name, _ in store.committed] == ["held", "a"])


@pytest.mark.slow
@pytest.mark.parametrize("failure", [StoreUnavailable("away"), ValueError("a bug")])
async def test_one_that_cannot_be_committed_costs_no_other(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_ONCE", 2)
    store = Store()
    async with transitions(store) as subject:
        store.failure = failure
        for i in range(5):
            subject.put(f"s{i}", ruling(f"s{i}"))
        await asyncio.sleep(0)
        await eventually(lambda: not subject._waiting)
        store.failure = None
        subject.put("s0", ruling("s0"))
        await eventually(lambda: store.committed == [("s0", "")])
