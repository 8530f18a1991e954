"""The health monitor: changes of services and pauses of the process while probes are in flight."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from ossa.registry.v1.event_pb2 import Event, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.app import open_parts
from registry_server.errors import Overloaded, ServiceNotFound
from registry_server.health.evaluator import Verdict
from registry_server.parts import Parts
from registry_server.probes import Outcome, OutcomeKind
from registry_server.runtime.fair_slots import FairSlots
from registry_server.runtime.tasks import cancel
from registry_server.security.identity import CALLER_KEY, NO_KEY, Identity, Role, current_identity
from registry_server.security.limits import Shares
from tests.support.endpoints import BROKEN, FINE, Agent, agents
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import settings
from tests.support.waiting import until

if TYPE_CHECKING:
    from registry_server.health import HealthMonitor

pytestmark = pytest.mark.slow

TIMEOUT = 20.0
HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN
MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
HOURLY: dict[str, Any] = {"interval_ms": 3_600_000, "timeout_ms": 60_000}
OFTEN: dict[str, Any] = {"interval_ms": 100, "timeout_ms": 100}


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with agents(1) as [made]:
        yield made


class Clock:
    """The clock of the pause detector in seconds; only the test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Process:
    """One process of the registry, and the events that a watcher received."""

    def __init__(self, parts: Parts, clock: Clock) -> None:
        self.parts = parts
        self.registry = parts.registry
        self.monitor: HealthMonitor = parts.monitor
        self.clock = clock
        self.events: list[Event] = []

    async def watch(self) -> None:
        with await self.registry.watch(WatchEventsRequest()) as watcher:
            async for batch in watcher:
                self.events += WatchEventsResponse.FromString(batch.wire).events

    @property
    def statuses(self) -> list[HealthStatus.ValueType]:
        """Return the statuses of health events, in order."""
        changed = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
        return [event.service.health.status for event in self.events if event.type == changed]

    @property
    def finished_probes(self) -> int:
        """Return the number of finished probes."""
        return sum(self.monitor.counters.outcomes.values())

    async def register(self, name: str, endpoint: str, **fields: Any) -> Service:
        return await self.registry.register(small_service(name, endpoint=endpoint, **fields))

    async def health(self, name: str) -> Health:
        return (await self.registry.health(name))[0]

    def status(self, name: str) -> HealthStatus.ValueType:
        return self.parts.registry._replica.records[name].message().health.status


@asynccontextmanager
async def open_process(redis: RedisProcess, *, start: bool = True, **health_check: Any) -> AsyncIterator[Process]:
    """Run a process whose pause detector uses a manual clock; wait until its assignment is known if ``start``."""
    async with open_parts(settings(redis.url, health_check={**health_check, "enabled": False})) as parts:
        async with asyncio.timeout(TIMEOUT):
            await parts.loaded.wait()
        clock = Clock()
        parts.monitor._pauses._now = clock
        parts.monitor._pauses._last = clock()
        process = Process(parts, clock)
        watching = asyncio.create_task(process.watch())
        if start:
            await parts.registry.start_health_monitoring()
            await until(lambda: bool(parts.monitor._membership.members))
        try:
            yield process
        finally:
            await cancel([watching])


# Changes while a probe is in flight.


async def test_probe_is_cancelled_if_the_service_is_removed(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, **HOURLY) as process:
        agent.open.clear()
        await process.register("a", agent.endpoint())
        await until(lambda: agent.waiting == 1)
        await process.registry.unregister("a")
        assert process.monitor.probed_services == 0

        await until(lambda: agent.waiting == 0)
        await process.monitor._results.flush()
        assert process.finished_probes == 0
        with pytest.raises(ServiceNotFound):
            await process.health("a")
        assert await process.registry._store.reader.read_check("a") == (None, None)
        assert process.statuses == []


@pytest.mark.parametrize("unregister", [False, True], ids=["re-registered", "unregistered and registered again"])
async def test_probe_of_a_former_endpoint_is_cancelled(
    redis: RedisProcess,
    unregister: bool,  # noqa: FBT001
) -> None:
    async with agents(2) as [old, new], open_process(redis, **HOURLY) as process:
        old.response = BROKEN
        old.open.clear()
        new.open.clear()
        await process.register("a", old.endpoint())
        await until(lambda: old.waiting == 1)
        if unregister:
            await process.registry.unregister("a")
        await process.register("a", new.endpoint())
        await until(lambda: old.waiting == 0)
        await process.monitor._results.flush()
        assert process.finished_probes == 0
        assert (await process.health("a")).status == UNKNOWN
        assert not (await process.health("a")).HasField("last_check")

        await until(lambda: new.waiting == 1)
        new.open.set()
        await until(lambda: process.statuses == [HEALTHY])


async def test_registering_again_during_a_probe_changes_the_status_once(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, **HOURLY) as process:
        agent.open.clear()
        await process.register("a", agent.endpoint())
        await until(lambda: agent.waiting == 1)
        await process.registry.unregister("a")
        await process.register("a", agent.endpoint())
        agent.open.set()
        await until(lambda: process.finished_probes == 1)
        await until(lambda: process.statuses == [HEALTHY])
        await until(lambda: process.monitor.probed_services == 1)


async def test_maintenance_reported_during_a_probe_survives_its_result(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, **HOURLY) as process:
        agent.open.clear()
        await process.register("a", agent.endpoint())
        await until(lambda: agent.waiting == 1)
        await process.registry.report_health("a", MAINTENANCE, None, "")
        agent.open.set()
        await until(lambda: process.finished_probes == 1)
        await process.monitor._results.flush()
        assert (await process.health("a")).status == MAINTENANCE
        await until(lambda: process.statuses == [MAINTENANCE])


async def test_result_counts_after_an_unrelated_change_during_the_probe(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, **HOURLY) as process:
        agent.open.clear()
        await process.register("a", agent.endpoint())
        await until(lambda: agent.waiting == 1)
        await process.register("a", agent.endpoint(), version="2.0.0")
        agent.open.set()
        await until(lambda: process.statuses == [HEALTHY])
        assert (await process.registry.get("a")).message().version == "2.0.0"
        assert len(agent.paths) == 1


# Limits.


async def test_service_whose_status_change_is_refused_keeps_its_lease(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, interval_ms=200, timeout_ms=200) as process:
        process.monitor._transitions._retry_seconds = 0.5
        await process.register("a", agent.endpoint())
        process.parts.writes._places = Shares(0)
        ends: set[int] = set()
        async with asyncio.timeout(TIMEOUT):
            while len(ends) < 5:
                await agent.wait_for_requests(len(agent.requests) + 1)
                _, end = await process.registry.health("a")
                assert end is not None
                ends.add(end.ToNanoseconds())
        assert process.status("a") == UNKNOWN
        process.parts.writes._places = Shares(1_000)
        await until(lambda: process.status("a") == HEALTHY)


async def test_due_probes_in_flight_are_bounded_and_all_services_are_probed(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, concurrency=6, **HOURLY) as process:
        process.monitor._first_probe_seconds = 0.01
        agent.open.clear()
        names = [f"s{i}" for i in range(20)]
        for name in names:
            await process.register(name, agent.endpoint(f"/{name}"))
        await until(lambda: agent.waiting == 3)
        # All are due, so that without a limit more would have started before this one, which has a separate limit.
        async with asyncio.timeout(TIMEOUT):
            checking = asyncio.create_task(process.registry.check_health("s19"))
            await until(lambda: agent.waiting == 4)
        agent.open.set()
        assert (await checking).status == HEALTHY
        await until(lambda: all(process.status(name) == HEALTHY for name in names))
    assert agent.max_waiting == 4
    assert set(agent.paths) == {f"/{name}/health" for name in names}


async def test_check_on_demand_is_not_delayed_by_hanging_services(redis: RedisProcess) -> None:
    async with agents(2) as [hanging, good], open_process(redis, concurrency=1, **HOURLY) as process:
        hanging.open.clear()
        await process.register("hangs", hanging.endpoint())
        await until(lambda: hanging.waiting == 1)
        await process.register("good", good.endpoint())
        async with asyncio.timeout(TIMEOUT):
            health = await process.registry.check_health("good")
        assert health.status == HEALTHY
        assert hanging.waiting == 1


async def test_concurrent_checks_on_demand_are_bounded(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, **HOURLY) as process:
        process.monitor._first_probe_seconds = 3600.0
        process.monitor._on_demand_slots = FairSlots(4)
        names = [f"s{i}" for i in range(8)]
        for name in names:
            await process.register(name, agent.endpoint())
        agent.open.clear()
        checking = [asyncio.create_task(process.registry.check_health(name)) for name in names]
        await until(lambda: agent.waiting == 2)
        agent.open.set()
        assert {health.status for health in await asyncio.gather(*checking)} == {HEALTHY}
    assert agent.max_waiting <= 3, "a due probe may be in flight too"


@contextmanager
def called_by(name: str) -> Iterator[None]:
    token = CALLER_KEY.set(("api-key", name))
    try:
        yield
    finally:
        CALLER_KEY.reset(token)


async def test_checks_on_demand_of_one_caller_delay_no_other(redis: RedisProcess) -> None:
    async with agents(2) as [hanging, good], open_process(redis, **HOURLY) as process:
        process.monitor._first_probe_seconds = 3600.0
        hanging.open.clear()
        for i in range(70):
            await process.register(f"hangs{i}", hanging.endpoint())
        await process.register("good", good.endpoint())
        with called_by("greedy"):
            checking = [asyncio.create_task(process.registry.check_health(f"hangs{i}")) for i in range(70)]
            checking += [asyncio.create_task(process.registry.check_health("good"))]
        await until(lambda: hanging.waiting >= 28)
        async with asyncio.timeout(TIMEOUT):
            with called_by("other"):
                assert (await process.registry.check_health("good")).status == HEALTHY
        assert not any(task.done() for task in checking)
        await cancel(checking)


async def test_cancelled_check_on_demand_frees_its_place_and_ends_its_probe(redis: RedisProcess) -> None:
    async with agents(1) as [hanging], open_process(redis, **HOURLY) as process:
        process.monitor._first_probe_seconds = 3600.0
        process.monitor._on_demand_slots = slots = FairSlots(2)
        hanging.open.clear()
        for name in "ab":
            await process.register(name, hanging.endpoint(f"/{name}"))
        first, same, second = (asyncio.create_task(process.registry.check_health(name)) for name in "aab")
        await until(lambda: hanging.waiting == 1 and slots.waiting(NO_KEY) == 1)
        await cancel([first])
        await asyncio.sleep(0.1)
        assert hanging.waiting == 1, "another call waits for the same probe"
        await cancel([second])
        assert slots.waiting(NO_KEY) == 0
        await cancel([same])
        await until(lambda: hanging.waiting == 0)
        hanging.open.set()
        assert (await process.registry.check_health("b")).status == HEALTHY
        assert not process.monitor._on_demand
        assert hanging.paths == ["/a/health", "/b/health"]


async def test_caller_with_too_many_waiting_checks_is_refused(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, **HOURLY) as process:
        process.monitor._first_probe_seconds = 3600.0
        process.monitor._on_demand_slots = slots = FairSlots(2, max_waiting=2)
        agent.open.clear()
        for name in "abcd":
            await process.register(name, agent.endpoint())
        with called_by("greedy"):
            checking = [asyncio.create_task(process.registry.check_health(name)) for name in "ab"]
            await until(lambda: slots.waiting(("api-key", "greedy")) == 1)
            with pytest.raises(Overloaded):
                await process.registry.check_health("c")
        with called_by("other"):
            checking.append(asyncio.create_task(process.registry.check_health("d")))
        await until(lambda: agent.waiting == 2)
        await cancel(checking)


async def test_service_that_gets_another_owner_is_probed_with_the_slots_of_that_owner(
    redis: RedisProcess, agent: Agent
) -> None:
    async with open_process(redis, **HOURLY) as process:
        await process.register("a", agent.endpoint())
        assert process.monitor._prober.owner_of("a") == ""
        token = current_identity.set(Identity("team", Role.AGENT, method="api-key", patterns=("*",)))
        await process.register("a", agent.endpoint())
        current_identity.reset(token)
        await until(lambda: process.monitor._prober.owner_of("a") == "team")


async def test_finished_probes_are_counted_by_outcome(redis: RedisProcess) -> None:
    async with agents(2) as [good, bad], open_process(redis, **HOURLY) as process:
        bad.response = BROKEN
        await process.register("good", good.endpoint())
        await process.register("bad", bad.endpoint())
        await until(lambda: process.finished_probes == 2)
        assert dict(process.monitor.counters.outcomes) == {OutcomeKind.OK: 1, OutcomeKind.FAILED: 1}
        assert sum(process.monitor.counters.lateness.counts) == 2
        assert process.monitor.probed_services == 2
        await process.registry.check_health("good")
        assert process.monitor.counters.outcomes[OutcomeKind.OK] == 2
        assert sum(process.monitor.counters.lateness.counts) == 2, "a probe on demand is never late"


# Pauses of the process.


async def test_probe_in_flight_during_a_pause_is_repeated_within_an_interval(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, interval_ms=1000, timeout_ms=1000) as process:
        agent.open.clear()
        agent.response = BROKEN
        await process.register("a", agent.endpoint())
        await until(lambda: agent.waiting == 1)
        process.clock.now += 600
        agent.response = FINE
        agent.open.set()
        resumed = time.monotonic()
        await until(lambda: len(agent.paths) == 2)
        elapsed = time.monotonic() - resumed
        await until(lambda: process.statuses == [HEALTHY])
        assert process.monitor._pauses.count == 1
        assert elapsed < TIMEOUT / 2, "the delay must not depend on the length of the pause"


async def test_time_without_health_monitoring_is_no_pause(redis: RedisProcess) -> None:
    async with open_process(redis, **HOURLY) as process:
        await process.registry.stop_health_monitoring()
        process.clock.now += 600
        await process.registry.start_health_monitoring()
        await until(lambda: bool(process.monitor._membership.members))
        assert process.monitor._pauses.count == 0


# Assignment to processes.


async def test_each_service_is_probed_by_one_process_as_members_change(redis: RedisProcess, agent: Agent) -> None:
    names = {f"s{i}" for i in range(60)}

    def assignments(*processes: Process) -> list[set[str]]:
        return [set(process.monitor._prober.services) for process in processes]

    def each_assigned_once(*processes: Process) -> bool:
        assigned = assignments(*processes)
        return set().union(*assigned) == names and sum(map(len, assigned)) == len(names) and all(assigned)

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_process(redis, member_period_ms=1000, **HOURLY))
        for name in names:
            await first.register(name, agent.endpoint())
        assert each_assigned_once(first)
        second = await stack.enter_async_context(open_process(redis, member_period_ms=1000, **HOURLY))
        await until(lambda: each_assigned_once(first, second))
        [of_first, of_second] = assignments(first, second)

        async with open_process(redis, member_period_ms=1000, **HOURLY) as third:
            await until(lambda: each_assigned_once(first, second, third))
            [remaining_first, remaining_second, _] = assignments(first, second, third)
            assert remaining_first < of_first, "a new process moves no service between the others"
            assert remaining_second < of_second
        await until(lambda: assignments(first, second) == [of_first, of_second])

        await second.registry.stop_health_monitoring()
        await until(lambda: each_assigned_once(first))
        assert second.monitor.probed_services == 0


async def test_services_of_other_processes_can_be_checked_on_demand(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, **HOURLY) as first, open_process(redis, **HOURLY) as second:
        await until(lambda: all(len(each.monitor._membership.members) == 2 for each in (first, second)))
        for i in range(10):
            await first.register(f"s{i}", agent.endpoint())
        await until(lambda: all(f"s{i}" in second.registry._replica.records for i in range(10)))
        for process in (first, second):
            for i in range(10):
                assert (await process.registry.check_health(f"s{i}")).status == HEALTHY
        assigned = [set(process.monitor._prober.services) for process in (first, second)]
        assert not assigned[0] & assigned[1]


async def test_services_registered_before_the_monitor_started_are_probed(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, start=False, **OFTEN) as process:
        names = [f"s{i}" for i in range(20)]
        for name in names:
            await process.register(name, agent.endpoint(f"/{name}"))
        await process.register("quiet", agent.endpoint("/quiet"), health_check={"heartbeat": {}})
        assert agent.paths == []
        await process.registry.start_health_monitoring()
        await until(lambda: {f"/{name}/health" for name in names} <= set(agent.paths))
        assert process.monitor.probed_services == 20
        assert "/quiet/health" not in agent.paths

        await process.registry.stop_health_monitoring()
        assert process.monitor.probed_services == 0


async def test_service_is_released_when_its_check_becomes_heartbeat(redis: RedisProcess, agent: Agent) -> None:
    async with open_process(redis, **HOURLY) as process:
        await process.register("a", agent.endpoint())
        assert process.monitor.probed_services == 1
        await process.register("a", agent.endpoint(), health_check={"heartbeat": {}})
        assert process.monitor.probed_services == 0
        await process.register("a", agent.endpoint())
        assert process.monitor.probed_services == 1


# Bugs in the evaluation.


async def test_exception_during_evaluation_loses_only_that_result(
    redis: RedisProcess, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_process(redis, interval_ms=1000, timeout_ms=1000) as process:
        evaluate = process.monitor._evaluator.evaluate
        failures = [ValueError("a bug"), ValueError("the same bug")]

        def fail_at_first(*arguments: Any, **options: Any) -> Verdict:
            if failures:
                raise failures.pop()
            return evaluate(*arguments, **options)

        monkeypatch.setattr(process.monitor._evaluator, "evaluate", fail_at_first)
        await process.register("a", agent.endpoint())
        await until(lambda: process.statuses == [HEALTHY])
        assert not failures


async def test_check_on_demand_returns_although_its_probe_raises(
    redis: RedisProcess, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_process(redis, **HOURLY) as process:
        await process.register("a", agent.endpoint())
        await until(lambda: process.statuses == [HEALTHY])

        async def fail(*_: Any) -> Outcome:
            raise ValueError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(process.monitor._prober, "probe_now", fail)
            async with asyncio.timeout(TIMEOUT):
                assert (await process.registry.check_health("a")).status == HEALTHY
        assert (await process.registry.check_health("a")).status == HEALTHY


async def test_failed_task_of_the_monitor_is_a_problem_and_is_restarted(
    redis: RedisProcess, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    async with open_process(redis, start=False, **HOURLY) as process:
        problems = process.parts.problems
        with monkeypatch.context() as patch, capture_logs():  # a traceback for the console takes a second
            patch.setattr(process.monitor._membership, "_refresh", lambda _: fail())
            patch.setattr(process.monitor._evaluator, "review", fail)
            process.monitor._review_seconds = 0.01
            await process.registry.start_health_monitoring()
            await until(lambda: {"task_membership", "task_probe_review"} <= problems.active.keys())
            assert "a bug" not in str(dict(problems.active))
        await process.register("a", agent.endpoint())
        await until(lambda: process.finished_probes > 0)
