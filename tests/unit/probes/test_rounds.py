"""Rounds of probes at moments that endpoints cannot choose: the probes are made by the test."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from registry_server.config import HealthCheckSettings
from registry_server.probes import Outcome, OutcomeKind, Plan
from registry_server.probes.rounds import Rounds
from registry_server.runtime.tasks import cancel
from tests.support.samples import small_service

TIMEOUT = 20.0
OK = Outcome(OutcomeKind.OK, 0.001)
FAILED = Outcome(OutcomeKind.FAILED, 0.001, "connection refused")


def plan(*, interval: float = 0.05, timeout: float = 60.0) -> Plan:
    return Plan.of(small_service("any"), HealthCheckSettings())._replace(interval=interval, timeout=timeout)


class Fleet:
    """Makes the probes: they take until ``open`` is set, and end as ``says``."""

    def __init__(self, *, concurrency: int = 100) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.says = OK
        self.under_way: Counter[Plan] = Counter()
        self.most_of_one = 0
        self.most = 0
        self.now = 1000.0
        """The clock by which process_pauses are noticed; it goes on only when it is told to."""
        self.results: list[tuple[int, Outcome, float, float]] = []
        self.rounds = Rounds(self, concurrency=concurrency, on_result=lambda *result: self.results.append(result))
        self.rounds._pauses._now = lambda: self.now
        self.rounds._pauses._last = self.now

    async def probe(self, plan: Plan) -> Outcome:
        self.under_way[plan] += 1
        self.most_of_one = max(self.most_of_one, self.under_way[plan])
        self.most = max(self.most, self.under_way.total())
        try:
            await asyncio.sleep(0)
            await self.open.wait()
            return self.says
        finally:
            self.under_way[plan] -= 1

    def probed(self) -> Counter[int]:
        return Counter(number for number, *_ in self.results)


@asynccontextmanager
async def rounds(fleet: Fleet) -> AsyncIterator[Rounds]:
    running = asyncio.create_task(fleet.rounds.run())
    try:
        yield fleet.rounds
    finally:
        await cancel([running])


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not holds():
            await asyncio.sleep(0.005)


def due_times(subject: Rounds) -> dict[int, float]:
    due = {}
    while (entry := subject._schedule.pop_due(time.monotonic() + 10_000)) is not None:
        due[entry[0]] = entry[1]
    return due


@pytest.mark.slow
async def test_each_is_probed_when_it_is_due_and_again_after_its_interval() -> None:
    fleet = Fleet()
    async with rounds(fleet) as subject:
        began = time.monotonic()
        subject.assign(1, plan(interval=0.3), began + 0.1)
        subject.assign(2, plan(interval=3600), began)
        await eventually(lambda: fleet.probed()[1] >= 3)
    assert fleet.probed()[2] == 1
    starts = [start for number, _, start, _ in fleet.results if number == 1]
    late = [late for number, _, _, late in fleet.results if number == 1]
    assert min(late) >= 0
    assert starts[0] - late[0] == pytest.approx(began + 0.1)
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(starts))


async def test_one_that_was_probed_late_is_not_probed_again_at_once() -> None:
    """So it is for all that registered while the probe process was about to start."""
    fleet = Fleet()
    now = time.monotonic()
    for number, late in ((1, 3000), (2, 500)):
        fleet.rounds.assign(number, plan(interval=3600), now - late)
    async with rounds(fleet) as subject:
        await eventually(lambda: len(fleet.results) == 2)
    due = due_times(subject)
    assert due[1] == pytest.approx(fleet.results[0][2] + 3600)
    assert due[2] == pytest.approx(now + 3100)


async def test_one_that_is_dropped_is_probed_no_more_but_told_of_once_if_it_was_under_way() -> None:
    fleet = Fleet()
    async with rounds(fleet) as subject:
        fleet.open.clear()
        subject.assign(1, plan(), time.monotonic())
        await eventually(lambda: fleet.under_way.total() == 1)
        subject.drop(1)
        subject.drop(1)
        subject.drop(99)
        fleet.open.set()
        await eventually(lambda: len(fleet.results) == 1)
        subject.assign(2, plan(), time.monotonic())
        await eventually(lambda: fleet.probed()[2] >= 3)
    assert fleet.probed()[1] == 1


async def test_one_that_hangs_has_one_probe_at_a_time() -> None:
    fleet = Fleet()
    async with rounds(fleet) as subject:
        fleet.open.clear()
        subject.assign(1, plan(interval=0.01), time.monotonic())
        await asyncio.sleep(0.1)
        fleet.open.set()
        await eventually(lambda: fleet.probed()[1] >= 20)
    assert fleet.most_of_one == 1


async def test_no_more_are_under_way_than_are_allowed_and_all_get_their_turn() -> None:
    fleet = Fleet(concurrency=3)
    async with rounds(fleet) as subject:
        fleet.open.clear()
        for number in range(20):
            subject.assign(number, plan(interval=3600), time.monotonic())
        await eventually(lambda: fleet.under_way.total() == 3)
        asked = asyncio.create_task(subject.probe(plan(interval=1)))
        await eventually(lambda: fleet.under_way.total() == 4)  # beside those that are due
        fleet.open.set()
        assert await asked == OK
        await eventually(lambda: len(fleet.results) == 20)
    assert fleet.most == 4


async def test_one_that_becomes_due_earlier_than_all_others_is_not_waited_for_in_vain() -> None:
    fleet = Fleet()
    async with rounds(fleet) as subject:
        subject.assign(1, plan(), time.monotonic() + 3600)
        await asyncio.sleep(0.05)
        subject.assign(2, plan(), time.monotonic() + 0.05)
        await eventually(lambda: fleet.probed()[2] >= 1)
    assert fleet.probed()[1] == 0


async def test_a_failure_that_a_standstill_was_in_proves_nothing_and_a_success_does() -> None:
    fleet = Fleet()
    async with rounds(fleet) as subject:
        for says, kind in ((FAILED, OutcomeKind.INCONCLUSIVE), (OK, OutcomeKind.OK)):
            fleet.says = says
            fleet.open.clear()
            asked = asyncio.create_task(subject.probe(plan()))
            await eventually(lambda: fleet.under_way.total() == 1)
            fleet.now += 600
            fleet.open.set()
            assert (await asked).kind is kind


@pytest.mark.slow
async def test_a_failure_for_which_we_were_too_late_proves_nothing() -> None:
    fleet = Fleet()
    fleet.says = FAILED
    fleet.open.clear()
    asked = asyncio.create_task(fleet.rounds.probe(plan(timeout=0.01)))
    await asyncio.sleep(0.6)
    fleet.open.set()
    assert (await asked).kind is OutcomeKind.INCONCLUSIVE


async def test_one_that_was_under_way_during_a_standstill_is_due_within_an_interval_of_its_end() -> None:
    fleet = Fleet()
    async with rounds(fleet) as subject:
        fleet.open.clear()
        for number in range(100):
            subject.assign(number, plan(interval=1000), time.monotonic())
        await eventually(lambda: fleet.under_way.total() == 100)
        fleet.now += 600
        fleet.open.set()
        await eventually(lambda: len(fleet.results) == 100)
        due = due_times(subject)
    assert len(due) == 100
    assert max(due.values()) - min(due.values()) > 300, "not all at once"
    assert max(due.values()) <= time.monotonic() + 1000


async def test_what_became_due_during_a_standstill_is_spread_over_an_interval() -> None:
    fleet = Fleet()
    for number in range(100):
        fleet.rounds.assign(number, plan(interval=30), time.monotonic() - 5)
    fleet.rounds.assign(200, plan(), later := time.monotonic() + 1000)
    before = time.monotonic()
    fleet.now += 600
    fleet.rounds._pauses.look()
    after = time.monotonic()
    due = due_times(fleet.rounds)
    assert due.pop(200) == later
    assert set(due) == set(range(100))
    assert all(before <= each <= after + 30 for each in due.values())
    assert max(due.values()) - min(due.values()) > 10, "not all at once"


async def test_after_a_short_standstill_what_became_due_is_not_put_off_for_longer_than_it() -> None:
    fleet = Fleet()
    fleet.rounds.assign(1, plan(interval=3600), time.monotonic())
    fleet.now += 2
    fleet.rounds._pauses.look()
    assert due_times(fleet.rounds)[1] <= time.monotonic() + 2


async def test_in_a_pause_nothing_begins_and_after_a_long_one_not_all_at_once() -> None:
    fleet = Fleet()
    async with rounds(fleet) as subject:
        await asyncio.sleep(0)
        subject.pause()
        for number in range(100):
            subject.assign(number, plan(interval=3600), time.monotonic())
        await asyncio.sleep(0.1)
        assert fleet.most == 0
        subject._paused_at -= 3600
        subject.resume()
        assert max(due_times(subject).values()) > time.monotonic() + 1000

        subject.pause()
        subject.assign(200, plan(interval=3600), time.monotonic())
        subject.resume()  # at once
        await eventually(lambda: fleet.probed()[200] == 1)
