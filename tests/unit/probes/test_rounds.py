"""Periodic probes, with probes and clock that the test controls."""

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
from tests.support.waiting import until

OK = Outcome(OutcomeKind.OK, 0.001)
FAILED = Outcome(OutcomeKind.FAILED, 0.001, "connection refused")


def plan(*, interval: float = 0.05, timeout: float = 60.0, owner: str = "") -> Plan:
    of_owner = Plan.of(small_service("any"), HealthCheckSettings(), owner)
    return of_owner._replace(interval=interval, timeout=timeout)


class ManualProber:
    """Sends probes that are delayed while ``open`` is cleared and end with ``outcome``."""

    def __init__(self, *, concurrency: int = 1_000) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.work: Callable[[Plan], None] = lambda _: None
        self.hanging: set[str] = set()
        """Owners whose probes never end."""
        self.outcome = OK
        self.in_flight: Counter[Plan] = Counter()
        self.max_in_flight_per_plan = 0
        self.max_in_flight = 0
        self.now = 1000.0
        """The clock of the pause detector; only the test advances it."""
        self.results: list[tuple[int, Outcome, float, float]] = []
        self.rounds = Rounds(
            self.send_probe, concurrency=concurrency, on_result=lambda *result: self.results.append(result)
        )
        self.rounds._pauses._now = lambda: self.now
        self.rounds._pauses._last = self.now

    async def send_probe(self, plan: Plan) -> Outcome:
        self.in_flight[plan] += 1
        self.max_in_flight_per_plan = max(self.max_in_flight_per_plan, self.in_flight[plan])
        self.max_in_flight = max(self.max_in_flight, self.in_flight.total())
        try:
            await asyncio.sleep(0)
            self.work(plan)
            await self.open.wait()
            if plan.owner in self.hanging:
                await asyncio.Event().wait()
            return self.outcome
        finally:
            self.in_flight[plan] -= 1

    def results_by_number(self) -> Counter[int]:
        return Counter(number for number, *_ in self.results)


@asynccontextmanager
async def rounds(prober: ManualProber) -> AsyncIterator[Rounds]:
    running = asyncio.create_task(prober.rounds.run())
    try:
        yield prober.rounds
    finally:
        await cancel([running])


def due_times(subject: Rounds) -> dict[int, float]:
    due = {}
    while (entry := subject._schedule.pop_due(time.monotonic() + 10_000)) is not None:
        due[entry[0]] = entry[1]
    return due


@pytest.mark.slow
async def test_service_is_probed_when_due_and_again_after_its_interval() -> None:
    prober = ManualProber()
    async with rounds(prober) as subject:
        started = time.monotonic()
        subject.assign_service(1, plan(interval=0.3), started + 0.1)
        subject.assign_service(2, plan(interval=3600), started)
        await until(lambda: prober.results_by_number()[1] >= 3)
    assert prober.results_by_number()[2] == 1
    starts = [start for number, _, start, _ in prober.results if number == 1]
    late = [late for number, _, _, late in prober.results if number == 1]
    assert min(late) >= 0
    assert starts[0] - late[0] == pytest.approx(started + 0.1)
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(starts))


async def test_late_probe_is_not_followed_immediately_by_the_next() -> None:
    """This applies to services that were registered while the probe process was starting."""
    prober = ManualProber()
    now = time.monotonic()
    for number, late in ((1, 3000), (2, 500)):
        prober.rounds.assign_service(number, plan(interval=3600), now - late)
    async with rounds(prober) as subject:
        await until(lambda: len(prober.results) == 2)
    due = due_times(subject)
    assert due[1] == pytest.approx(prober.results[0][2] + 3600)
    assert due[2] == pytest.approx(now + 3100)


async def test_dropped_service_is_probed_no_more_and_frees_its_slot() -> None:
    prober = ManualProber(concurrency=1)
    async with rounds(prober) as subject:
        prober.open.clear()
        for number in (1, 2, 3):
            subject.assign_service(number, plan(), time.monotonic())
        await until(lambda: prober.in_flight.total() == 1)
        for number in (1, 1, 2, 99):  # one has a probe in flight, the other waits for its slot
            subject.drop_service(number)
        prober.open.set()
        await until(lambda: prober.results_by_number()[3] >= 3)
    assert set(prober.results_by_number()) == {3}


@pytest.mark.slow
async def test_hanging_service_has_one_probe_at_a_time() -> None:
    prober = ManualProber()
    async with rounds(prober) as subject:
        prober.open.clear()
        subject.assign_service(1, plan(interval=0.01), time.monotonic())
        await asyncio.sleep(0.1)
        prober.open.set()
        await until(lambda: prober.results_by_number()[1] >= 20)
    assert prober.max_in_flight_per_plan == 1


async def test_due_probes_in_flight_are_bounded_and_all_are_sent() -> None:
    prober = ManualProber(concurrency=6)
    async with rounds(prober) as subject:
        prober.open.clear()
        for number in range(20):
            subject.assign_service(number, plan(interval=3600), time.monotonic())
        await until(lambda: prober.in_flight.total() == 3)
        on_demand = asyncio.create_task(subject.probe_now(plan(interval=1)))
        await until(lambda: prober.in_flight.total() == 4)  # in addition to due probes
        prober.open.set()
        assert await on_demand == OK
        await until(lambda: len(prober.results) == 20)
    assert prober.max_in_flight == 4


async def test_owner_whose_probes_never_end_delays_no_other_owner() -> None:
    prober = ManualProber(concurrency=8)
    async with rounds(prober) as subject:
        prober.open.clear()
        for number in range(100):
            subject.assign_service(number, plan(interval=300, owner="greedy"), time.monotonic())
        await until(lambda: prober.in_flight.total() == 4)
        prober.hanging = {"greedy"}
        prober.open.set()
        for number in range(100, 110):
            subject.assign_service(number, plan(interval=0.05, owner=f"other{number % 2}"), time.monotonic())
        await until(lambda: all(prober.results_by_number()[number] >= 5 for number in range(100, 110)))
    assert {result[1].kind for result in prober.results if result[0] >= 100} == {OutcomeKind.OK}
    assert prober.max_in_flight <= 8


@pytest.mark.slow
async def test_thousands_of_fast_probes_of_an_owner_delay_no_other_owner() -> None:
    """They need more time than the process has; a probe costs about 0.4 ms."""
    prober = ManualProber()

    def work(plan: Plan) -> None:
        ends = time.perf_counter() + 0.0004
        while plan.owner == "greedy" and time.perf_counter() < ends:
            pass

    prober.work = work
    async with rounds(prober) as subject:
        for number in range(5_000):
            subject.assign_service(number, plan(interval=1.0, owner="greedy"), time.monotonic())
        subject.assign_service(5_000, plan(interval=0.2, owner="other"), time.monotonic())
        await until(lambda: prober.results_by_number()[5_000] >= 10)
        sent = [result for result in prober.results if result[1] is OK]
    assert {result[1].kind for result in prober.results if result[0] == 5_000} == {OutcomeKind.OK}
    assert len(sent) < 5 * 5_000, "not after each round of the others"


async def test_service_that_waits_for_its_turn_can_be_dropped() -> None:
    prober = ManualProber()
    async with rounds(prober) as subject:
        for number in range(100):
            subject.assign_service(number, plan(interval=3600), time.monotonic())
        async with asyncio.timeout(20):
            while not subject._waiting:
                await asyncio.sleep(0)  # they start within a few passes of the event loop
        for number in list(subject._waiting):
            subject.drop_service(number)
        subject.assign_service(100, plan(interval=3600), time.monotonic())
        await until(lambda: prober.results_by_number()[100] == 1)
        await asyncio.sleep(0)
        await until(lambda: not subject._in_flight)
        assert not subject._slots._held
        assert not subject._turns._held


@pytest.mark.slow
async def test_probe_without_a_slot_is_reported_as_skipped_once_an_interval() -> None:
    """An INCONCLUSIVE result renews the lease; the probe itself is sent once a slot is free."""
    prober = ManualProber(concurrency=1)
    async with rounds(prober) as subject:
        prober.open.clear()
        started = time.monotonic()
        subject.assign_service(1, plan(interval=3600), started)
        await until(lambda: prober.in_flight.total() == 1)
        subject.assign_service(2, plan(interval=0.3), started)
        await until(lambda: prober.results_by_number()[2] >= 4)
        elapsed = time.monotonic() - started
        skipped = list(prober.results)
        prober.open.set()
        await until(lambda: prober.results_by_number()[1] == 1)
        await until(lambda: prober.results[-1][0] == 2 and prober.results[-1][1] == OK)
    assert {(number, outcome.kind) for number, outcome, *_ in skipped} == {(2, OutcomeKind.INCONCLUSIVE)}
    assert skipped[0][1].error == "the registry has no free slot for this probe"
    assert len(skipped) <= elapsed / 0.3
    assert [start - late for _, _, start, late in skipped] == pytest.approx([started] * len(skipped))


async def test_skipped_probes_of_a_large_fleet_are_reported_at_a_bounded_rate() -> None:
    prober = ManualProber(concurrency=1)
    async with rounds(prober) as subject:
        prober.open.clear()
        for number in range(5_000):
            subject.assign_service(number, plan(interval=1.0), time.monotonic())
        await until(lambda: len(subject._waiting) == 4_999)
        due = sorted(due_times(subject).values())
    assert due[-1] - time.monotonic() > 8, "500 a second"


async def test_service_that_is_due_before_all_others_is_probed_in_time() -> None:
    prober = ManualProber()
    async with rounds(prober) as subject:
        subject.assign_service(1, plan(), time.monotonic() + 3600)
        await asyncio.sleep(0.05)
        subject.assign_service(2, plan(), time.monotonic() + 0.05)
        await until(lambda: prober.results_by_number()[2] >= 1)
    assert prober.results_by_number()[1] == 0


async def test_failure_during_a_pause_is_inconclusive_and_success_counts() -> None:
    prober = ManualProber()
    async with rounds(prober) as subject:
        for outcome, kind in ((FAILED, OutcomeKind.INCONCLUSIVE), (OK, OutcomeKind.OK)):
            prober.outcome = outcome
            prober.open.clear()
            on_demand = asyncio.create_task(subject.probe_now(plan()))
            await until(lambda: prober.in_flight.total() == 1)
            prober.now += 600
            prober.open.set()
            assert (await on_demand).kind is kind


@pytest.mark.slow
async def test_failure_of_a_delayed_probe_is_inconclusive() -> None:
    prober = ManualProber()
    prober.outcome = FAILED
    prober.open.clear()
    on_demand = asyncio.create_task(prober.rounds.probe_now(plan(timeout=0.01)))
    await asyncio.sleep(0.6)
    prober.open.set()
    assert (await on_demand).kind is OutcomeKind.INCONCLUSIVE


@pytest.mark.parametrize(
    ("outcome", "lag", "kind"),
    [
        (Outcome(OutcomeKind.FAILED, 0.4, "no answer within 400 ms"), 0.1, OutcomeKind.INCONCLUSIVE),
        (Outcome(OutcomeKind.FAILED, 0.4, "no answer within 400 ms"), 0.01, OutcomeKind.FAILED),
        (Outcome(OutcomeKind.FAILED, 0.2, "connection refused"), 0.1, OutcomeKind.FAILED),
        (Outcome(OutcomeKind.DEGRADED, 0.3, "slower than 200 ms"), 0.05, OutcomeKind.INCONCLUSIVE),
        (Outcome(OutcomeKind.DEGRADED, 0.3, "slower than 200 ms"), 0.01, OutcomeKind.DEGRADED),
        (Outcome(OutcomeKind.DEGRADED, 0.1, "the service reports that it is degraded"), 0.1, OutcomeKind.DEGRADED),
        (Outcome(OutcomeKind.OK, 0.3), 0.4, OutcomeKind.OK),
    ],
)
async def test_exceeded_time_limit_is_inconclusive_while_the_event_loop_lags(
    outcome: Outcome, lag: float, kind: OutcomeKind
) -> None:
    prober = ManualProber()
    prober.outcome = outcome
    prober.rounds._pauses.lag = lag
    result = await prober.rounds.probe_now(plan(timeout=0.4)._replace(degraded_after=0.2))
    assert result.kind is kind


async def test_probes_in_flight_during_a_pause_are_repeated_within_an_interval() -> None:
    prober = ManualProber()
    async with rounds(prober) as subject:
        prober.open.clear()
        for number in range(100):
            subject.assign_service(number, plan(interval=1000), time.monotonic())
        await until(lambda: prober.in_flight.total() == 100)
        prober.now += 600
        prober.open.set()
        await until(lambda: len(prober.results) == 100)
        due = due_times(subject)
    assert len(due) == 100
    assert max(due.values()) - min(due.values()) > 300, "probes must be spread"
    assert max(due.values()) <= time.monotonic() + 1000


async def test_probes_due_during_a_pause_are_spread_over_an_interval() -> None:
    prober = ManualProber()
    for number in range(100):
        prober.rounds.assign_service(number, plan(interval=30), time.monotonic() - 5)
    prober.rounds.assign_service(200, plan(), later := time.monotonic() + 1000)
    before = time.monotonic()
    prober.now += 600
    prober.rounds._pauses.check()
    after = time.monotonic()
    due = due_times(prober.rounds)
    assert due.pop(200) == later
    assert set(due) == set(range(100))
    assert all(before <= each <= after + 30 for each in due.values())
    assert max(due.values()) - min(due.values()) > 10, "probes must be spread"


async def test_short_pause_delays_due_probes_by_at_most_its_length() -> None:
    prober = ManualProber()
    prober.rounds.assign_service(1, plan(interval=3600), time.monotonic())
    prober.now += 2
    prober.rounds._pauses.check()
    assert due_times(prober.rounds)[1] <= time.monotonic() + 2


async def test_rounds_start_no_probe_while_paused_and_spread_them_on_resume() -> None:
    prober = ManualProber()
    async with rounds(prober) as subject:
        await asyncio.sleep(0)
        subject.pause()
        for number in range(100):
            subject.assign_service(number, plan(interval=3600), time.monotonic())
        await asyncio.sleep(0.1)
        assert prober.max_in_flight == 0
        subject._paused_at -= 3600
        subject.resume()
        assert max(due_times(subject).values()) > time.monotonic() + 1000

        subject.pause()
        subject.assign_service(200, plan(interval=3600), time.monotonic())
        subject.resume()  # immediately
        await until(lambda: prober.results_by_number()[200] == 1)
