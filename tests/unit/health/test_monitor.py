"""The monitor at moments that the front door cannot choose: what changes or stands still while probes are under way."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from ossa.registry.v1.event_pb2 import Event, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from registry_server.app import Parts, open_parts
from registry_server.errors import ServiceNotFound
from registry_server.health import HealthMonitor
from registry_server.health import monitor as module
from registry_server.health.evaluator import Verdict
from registry_server.probes import Outcome, OutcomeKind
from registry_server.runtime.tasks import cancel
from tests.support.endpoints import BROKEN, FINE, Agent, agents
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import settings

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
    """Seconds of a clock by which process_pauses are noticed; it goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Process:
    """One process of the registry, and what a watcher was told."""

    def __init__(self, parts: Parts, clock: Clock) -> None:
        self.parts = parts
        self.registry = parts.registry
        self.monitor: HealthMonitor = parts.monitor
        self.clock = clock
        self.events: list[Event] = []

    async def watch(self) -> None:
        with await self.registry.watch(WatchEventsRequest()) as watcher:
            async for message in watcher:
                self.events += WatchEventsResponse.FromString(message).events

    @property
    def statuses(self) -> list[HealthStatus.ValueType]:
        """The statuses that were told of, in order."""
        changed = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
        return [event.service.health.status for event in self.events if event.type == changed]

    @property
    def results(self) -> int:
        """How many probes ended."""
        return sum(self.monitor.counters.outcomes.values())

    async def register(self, name: str, endpoint: str, **fields: Any) -> Service:
        return await self.registry.register(small_service(name, endpoint=endpoint, **fields))

    async def health(self, name: str) -> Health:
        return (await self.registry.health(name))[0]

    def status(self, name: str) -> HealthStatus.ValueType:
        return self.parts.registry._replica.records[name].message().health.status


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not holds():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def process_on(redis: RedisProcess, *, start: bool = True, **health_check: Any) -> AsyncIterator[Process]:
    """A process whose clock for process_pauses stands; monitoring has begun and its share is known."""
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
            await eventually(lambda: bool(parts.monitor._membership.members))
        try:
            yield process
        finally:
            await cancel([watching])


# Changes while a probe is under way.


async def test_the_result_of_a_service_that_is_gone_meanwhile_is_dropped(redis: RedisProcess, agent: Agent) -> None:
    async with process_on(redis, **HOURLY) as process:
        agent.open.clear()
        await process.register("a", agent.endpoint())
        await eventually(lambda: agent.waiting == 1)
        await process.registry.unregister("a")
        assert process.monitor.probed_services == 0

        agent.open.set()
        await eventually(lambda: process.results == 1)
        await process.monitor._results.flush()
        with pytest.raises(ServiceNotFound):
            await process.health("a")
        assert await process.registry._store.reader.read_check("a") == (None, None)
        assert process.statuses == []


@pytest.mark.parametrize("anew", [False, True], ids=["re-registered", "unregistered and registered anew"])
async def test_the_result_of_an_endpoint_that_a_service_has_left_is_dropped(
    redis: RedisProcess,
    anew: bool,  # noqa: FBT001
) -> None:
    async with agents(2) as [old, new], process_on(redis, **HOURLY) as process:
        old.response = BROKEN
        old.open.clear()
        new.open.clear()
        await process.register("a", old.endpoint())
        await eventually(lambda: old.waiting == 1)
        if anew:
            await process.registry.unregister("a")
        await process.register("a", new.endpoint())
        old.open.set()
        await eventually(lambda: process.results == 1)
        await process.monitor._results.flush()
        assert (await process.health("a")).status == UNKNOWN
        assert not (await process.health("a")).HasField("last_check")

        await eventually(lambda: new.waiting == 1)
        new.open.set()
        await eventually(lambda: process.statuses == [HEALTHY])


async def test_the_result_of_a_service_that_is_registered_anew_as_it_was_counts_once(
    redis: RedisProcess, agent: Agent
) -> None:
    async with process_on(redis, **HOURLY) as process:
        agent.open.clear()
        await process.register("a", agent.endpoint())
        await eventually(lambda: agent.waiting == 1)
        await process.registry.unregister("a")
        await process.register("a", agent.endpoint())
        agent.open.set()
        await eventually(lambda: process.results == 2)
        await eventually(lambda: process.statuses == [HEALTHY])
        await eventually(lambda: process.monitor.probed_services == 1)


async def test_maintenance_that_is_reported_during_a_probe_outlasts_its_result(
    redis: RedisProcess, agent: Agent
) -> None:
    async with process_on(redis, **HOURLY) as process:
        agent.open.clear()
        await process.register("a", agent.endpoint())
        await eventually(lambda: agent.waiting == 1)
        await process.registry.report_health("a", MAINTENANCE, None, "")
        agent.open.set()
        await eventually(lambda: process.results == 1)
        await process.monitor._results.flush()
        assert (await process.health("a")).status == MAINTENANCE
        await eventually(lambda: process.statuses == [MAINTENANCE])


async def test_other_changes_during_a_probe_leave_its_result_alone(redis: RedisProcess, agent: Agent) -> None:
    async with process_on(redis, **HOURLY) as process:
        agent.open.clear()
        await process.register("a", agent.endpoint())
        await eventually(lambda: agent.waiting == 1)
        await process.register("a", agent.endpoint(), version="2.0.0")
        agent.open.set()
        await eventually(lambda: process.statuses == [HEALTHY])
        assert (await process.registry.get("a")).message().version == "2.0.0"
        assert len(agent.paths) == 1


# Bounds.


async def test_no_more_probes_are_under_way_than_are_allowed_and_all_get_their_turn(
    redis: RedisProcess, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_PROBE", 0.01)
    async with process_on(redis, concurrency=3, **HOURLY) as process:
        agent.open.clear()
        names = [f"s{i}" for i in range(20)]
        for name in names:
            await process.register(name, agent.endpoint(f"/{name}"))
        await eventually(lambda: agent.waiting == 3)
        # All are due: more would have begun long before this one, whom nobody holds up.
        async with asyncio.timeout(TIMEOUT):
            asking = asyncio.create_task(process.registry.check_health("s19"))
            await eventually(lambda: agent.waiting == 4)
        agent.open.set()
        assert (await asking).status == HEALTHY
        await eventually(lambda: all(process.status(name) == HEALTHY for name in names))
    assert agent.max_waiting == 4
    assert set(agent.paths) == {f"/{name}/health" for name in names}


async def test_those_who_ask_are_not_held_up_by_services_that_hang(redis: RedisProcess) -> None:
    async with agents(2) as [hanging, good], process_on(redis, concurrency=1, **HOURLY) as process:
        hanging.open.clear()
        await process.register("hangs", hanging.endpoint())
        await eventually(lambda: hanging.waiting == 1)
        await process.register("good", good.endpoint())
        async with asyncio.timeout(TIMEOUT):
            health = await process.registry.check_health("good")
        assert health.status == HEALTHY
        assert hanging.waiting == 1


async def test_those_who_ask_are_bounded_too(
    redis: RedisProcess, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_PROBE", 3600.0)
    async with process_on(redis, **HOURLY) as process:
        process.monitor._on_demand_slots = asyncio.Semaphore(2)
        names = [f"s{i}" for i in range(8)]
        for name in names:
            await process.register(name, agent.endpoint())
        agent.open.clear()
        asking = [asyncio.create_task(process.registry.check_health(name)) for name in names]
        await eventually(lambda: agent.waiting == 2)
        agent.open.set()
        assert {health.status for health in await asyncio.gather(*asking)} == {HEALTHY}
    assert agent.max_waiting <= 3, "one of those that are due may have come too"


async def test_what_was_probed_is_counted_by_how_it_went(redis: RedisProcess) -> None:
    async with agents(2) as [good, bad], process_on(redis, **HOURLY) as process:
        bad.response = BROKEN
        await process.register("good", good.endpoint())
        await process.register("bad", bad.endpoint())
        await eventually(lambda: process.results == 2)
        assert dict(process.monitor.counters.outcomes) == {OutcomeKind.OK: 1, OutcomeKind.FAILED: 1}
        assert sum(process.monitor.counters.lateness.counts) == 2
        assert process.monitor.probed_services == 2
        await process.registry.check_health("good")
        assert process.monitor.counters.outcomes[OutcomeKind.OK] == 2
        assert sum(process.monitor.counters.lateness.counts) == 2, "nobody is late who was not due"


# Standstills.


async def test_what_was_under_way_during_a_standstill_does_not_count_and_is_checked_again_within_an_interval(
    redis: RedisProcess, agent: Agent
) -> None:
    async with process_on(redis, interval_ms=1000, timeout_ms=1000) as process:
        agent.open.clear()
        agent.response = BROKEN
        await process.register("a", agent.endpoint())
        await eventually(lambda: agent.waiting == 1)
        process.clock.now += 600
        agent.response = FINE
        agent.open.set()
        begun = time.monotonic()
        await eventually(lambda: len(agent.paths) == 2)
        within = time.monotonic() - begun
        await eventually(lambda: process.statuses == [HEALTHY])
        assert process.monitor._pauses.count == 1
        assert within < TIMEOUT / 2, "not after the length of the standstill"


async def test_time_in_which_nobody_monitored_is_no_standstill(redis: RedisProcess) -> None:
    async with process_on(redis, **HOURLY) as process:
        await process.registry.stop_health_monitoring()
        process.clock.now += 600
        await process.registry.start_health_monitoring()
        await eventually(lambda: bool(process.monitor._membership.members))
        assert process.monitor._pauses.count == 0


# Shares.


async def test_each_service_is_probed_by_one_process_whichever_come_and_go(redis: RedisProcess, agent: Agent) -> None:
    names = {f"s{i}" for i in range(60)}

    def shares(*processes: Process) -> list[set[str]]:
        return [set(process.monitor._plans) for process in processes]

    def shared_out(*processes: Process) -> bool:
        held = shares(*processes)
        return set().union(*held) == names and sum(map(len, held)) == len(names) and all(held)

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(process_on(redis, member_period_ms=1000, **HOURLY))
        for name in names:
            await first.register(name, agent.endpoint())
        assert shared_out(first)
        second = await stack.enter_async_context(process_on(redis, member_period_ms=1000, **HOURLY))
        await eventually(lambda: shared_out(first, second))
        [of_first, of_second] = shares(first, second)

        async with process_on(redis, member_period_ms=1000, **HOURLY) as third:
            await eventually(lambda: shared_out(first, second, third))
            [fewer, also_fewer, _] = shares(first, second, third)
            assert fewer < of_first, "whoever comes takes, and moves nothing between the others"
            assert also_fewer < of_second
        await eventually(lambda: shares(first, second) == [of_first, of_second])

        await second.registry.stop_health_monitoring()
        await eventually(lambda: shared_out(first))
        assert second.monitor.probed_services == 0


async def test_the_services_of_others_are_checked_on_demand_all_the_same(redis: RedisProcess, agent: Agent) -> None:
    async with process_on(redis, **HOURLY) as first, process_on(redis, **HOURLY) as second:
        await eventually(lambda: all(len(each.monitor._membership.members) == 2 for each in (first, second)))
        for i in range(10):
            await first.register(f"s{i}", agent.endpoint())
        await eventually(lambda: all(f"s{i}" in second.registry._replica.records for i in range(10)))
        for process in (first, second):
            for i in range(10):
                assert (await process.registry.check_health(f"s{i}")).status == HEALTHY
        held = [set(process.monitor._plans) for process in (first, second)]
        assert not held[0] & held[1]


async def test_what_was_registered_before_monitoring_began_is_probed_too(redis: RedisProcess, agent: Agent) -> None:
    async with process_on(redis, start=False, **OFTEN) as process:
        names = [f"s{i}" for i in range(20)]
        for name in names:
            await process.register(name, agent.endpoint(f"/{name}"))
        await process.register("quiet", agent.endpoint("/quiet"), health_check={"heartbeat": {}})
        assert agent.paths == []
        await process.registry.start_health_monitoring()
        await eventually(lambda: {f"/{name}/health" for name in names} <= set(agent.paths))
        assert process.monitor.probed_services == 20
        assert "/quiet/health" not in agent.paths

        await process.registry.stop_health_monitoring()
        assert process.monitor.probed_services == 0


async def test_a_service_is_let_go_once_it_is_not_to_be_probed(redis: RedisProcess, agent: Agent) -> None:
    async with process_on(redis, **HOURLY) as process:
        await process.register("a", agent.endpoint())
        assert process.monitor.probed_services == 1
        await process.register("a", agent.endpoint(), health_check={"heartbeat": {}})
        assert process.monitor.probed_services == 0
        await process.register("a", agent.endpoint())
        assert process.monitor.probed_services == 1


# Faults of our own.


async def test_a_result_that_breaks_us_costs_that_result_alone(
    redis: RedisProcess, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process_on(redis, interval_ms=1000, timeout_ms=1000) as process:
        weigh = process.monitor._evaluator.evaluate
        failures = [ValueError("a bug"), ValueError("the same bug")]

        def fails_at_first(*arguments: Any, **options: Any) -> Verdict:
            if failures:
                raise failures.pop()
            return weigh(*arguments, **options)

        monkeypatch.setattr(process.monitor._evaluator, "evaluate", fails_at_first)
        await process.register("a", agent.endpoint())
        await eventually(lambda: process.statuses == [HEALTHY])
        assert not failures


async def test_whoever_asks_is_answered_also_when_the_result_breaks_us(
    redis: RedisProcess, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process_on(redis, **HOURLY) as process:
        await process.register("a", agent.endpoint())
        await eventually(lambda: process.statuses == [HEALTHY])

        async def fails(*_: Any) -> Outcome:
            raise ValueError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(process.monitor._prober, "probe", fails)
            async with asyncio.timeout(TIMEOUT):
                assert (await process.registry.check_health("a")).status == HEALTHY
        assert (await process.registry.check_health("a")).status == HEALTHY


async def test_a_monitor_that_breaks_ends_the_process_and_not_the_checks_alone(
    redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that goes on without its checks would show dead services as healthy."""
    monkeypatch.setattr(module, "_REVIEW_EVERY", 0.01)

    async def fails() -> None:
        raise ValueError("a bug")

    async def run() -> None:
        async with process_on(redis, start=False, **HOURLY) as process:
            monkeypatch.setattr(process.monitor._evaluator, "review", fails)
            await process.registry.start_health_monitoring()
            async with asyncio.timeout(TIMEOUT):
                await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as raised:
        await run()
    assert raised.group_contains(ValueError, match="a bug")
