"""What follows from results, on a real store: committed, kept, or dropped."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.struct_pb2 import Struct

from ossa.registry.v1.event_pb2 import Event, EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import WatchEventsRequest, WatchEventsResponse
from ossa.registry.v1.service_pb2 import Health, HealthStatus
from registry_server.app import Parts, open_parts
from registry_server.config import HealthCheckSettings
from registry_server.errors import StoreUnavailable
from registry_server.model.record import Record
from registry_server.probes import Outcome, OutcomeKind, Plan
from registry_server.runtime.tasks import cancel
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import settings

if TYPE_CHECKING:
    from registry_server.health import HealthEvaluator

TIMEOUT = 20.0
HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY
DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED
UNKNOWN = HealthStatus.HEALTH_STATUS_UNKNOWN
MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
HEALTH_CHANGED = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED
REGISTRY_ERROR = EventType.EVENT_TYPE_REGISTRY_ERROR

OK = Outcome(OutcomeKind.OK, 0.01)
SLOW = Outcome(OutcomeKind.DEGRADED, 0.9, "slower than 500 ms")
FAILED = Outcome(OutcomeKind.FAILED, 0.02, "HTTP 500")
UNASKED = Outcome(OutcomeKind.INCONCLUSIVE, 0.0, "the registry has too many open files")


class Court:
    """A judge whose results come from the test, and what a watcher was told."""

    def __init__(self, parts: Parts) -> None:
        self.registry = parts.registry
        self.judge: HealthEvaluator = parts.monitor._evaluator
        self.results = parts.monitor._results
        self.events: list[Event] = []

    async def watch(self) -> None:
        with await self.registry.watch(WatchEventsRequest()) as watcher:
            async for message in watcher:
                self.events += WatchEventsResponse.FromString(message).events

    async def register(self, name: str = "a", *, expected: bool = True, **fields: Any) -> Record:
        await self.registry.register(small_service(name, **fields))
        if expected:
            self.judge.expect(self.record(name))
        return self.record(name)

    def record(self, name: str = "a") -> Record:
        return self.registry._replica.records[name]

    async def take(
        self,
        outcome: Outcome,
        name: str = "a",
        *,
        probed: Record | None = None,
        contact: int = 1,
        **health_check: Any,
    ) -> Health | None:
        record = probed or self.record(name)
        plan = Plan.of(record.message(), HealthCheckSettings(**health_check))
        self.judge._contact_since = lambda _: contact
        return await self.judge.take(record, plan, outcome, time.monotonic())

    async def health(self, name: str = "a") -> Health:
        await self.results.flush()
        return (await self.registry.health(name))[0]

    async def lease(self, name: str = "a") -> int:
        await self.results.flush()
        _, ends = await self.registry.health(name)
        assert ends is not None
        return ends.ToNanoseconds()

    async def age_leases(self, names: Iterable[str]) -> None:
        """Lets leases end in half their time."""
        store: Any = self.registry._store
        for name in names:
            ends = await store._client.zscore(store.keys.leases, name)
            await store._client.zadd(store.keys.leases, {name: ends - 150_000})

    async def told(self, count: int) -> list[Event]:
        """Waits for so many events beside registrations."""

        def events() -> list[Event]:
            return [event for event in self.events if event.type in (HEALTH_CHANGED, REGISTRY_ERROR)]

        async with asyncio.timeout(TIMEOUT):
            while len(events()) < count:
                await asyncio.sleep(0.005)
        assert len(events()) == count
        return events()


@asynccontextmanager
async def court_on(redis: RedisProcess, **health_check: Any) -> AsyncIterator[Court]:
    async with open_parts(settings(redis.url, health_check={**health_check, "enabled": False})) as parts:
        async with asyncio.timeout(TIMEOUT):
            await parts.loaded.wait()
        court = Court(parts)
        watching = asyncio.create_task(court.watch())
        try:
            yield court
        finally:
            await cancel([watching])


@pytest.fixture
async def court(redis: RedisProcess) -> AsyncIterator[Court]:
    async with court_on(redis) as made:
        yield made


async def test_a_transition_is_committed_with_what_the_probe_found(court: Court) -> None:
    details = Struct()
    details["db"] = "down"
    before = (await court.register()).message()
    health = await court.take(FAILED._replace(details=details))
    assert health is not None
    assert (health.status, health.error, health.details) == (UNHEALTHY, "HTTP 500", details)
    assert health.response_time.ToMicroseconds() == 20_000
    assert health.last_check == health.status_changed_at
    after = court.record().message()
    assert after.health == health
    assert after.updated_at == health.last_check
    [event] = await court.told(1)
    assert (event.service, event.previous_health, event.revision) == (after, UNKNOWN, before.revision + 1)
    assert event.reason == EventReason.EVENT_REASON_HEALTH_CHECK


async def test_any_other_result_is_kept_and_takes_no_revision(court: Court) -> None:
    await court.register(health=Health(status=HEALTHY))
    before = court.record().message()
    health = await court.take(FAILED)
    assert health is not None
    assert (health.status, health.error) == (HEALTHY, "HTTP 500")
    shown = await court.health()
    assert (shown.status, shown.error, shown.last_check) == (HEALTHY, "HTTP 500", health.last_check)
    assert shown.status_changed_at == before.health.status_changed_at
    assert court.record().message() == before


@pytest.mark.parametrize("status", [UNKNOWN, HEALTHY, UNHEALTHY, DEGRADED, MAINTENANCE])
async def test_a_probe_that_could_not_be_made_changes_no_status_and_no_streak(
    court: Court, status: HealthStatus.ValueType
) -> None:
    await court.register(health=Health(status=status))
    before = court.record()
    for _ in range(5):
        health = await court.take(UNASKED)
        assert health is not None
        assert (health.status, health.error) == (status, UNASKED.error)
    assert (await court.health()).error == UNASKED.error
    assert court.record() is before


async def test_a_probe_that_could_not_be_made_neither_lengthens_nor_breaks_a_streak(court: Court) -> None:
    await court.register(health=Health(status=HEALTHY))
    for outcome in (FAILED, UNASKED, FAILED, UNASKED):
        await court.take(outcome)
        assert court.record().status == HEALTHY
    await court.take(FAILED)
    assert court.record().status == UNHEALTHY


async def test_a_probe_that_could_not_be_made_costs_no_lease(court: Court) -> None:
    """Nobody is evicted for what is wrong with the registry."""
    await court.register(health=Health(status=HEALTHY))
    await court.age_leases(["a"])
    aged = await court.lease()
    await court.take(UNASKED)
    assert await court.lease() > aged + 100_000_000_000


async def test_a_report_that_is_newer_than_a_result_is_what_is_shown(court: Court) -> None:
    await court.register(health=Health(status=HEALTHY))
    details = Struct()
    details["by"] = "the agent"
    await court.take(OK)  # waits a moment to be written with others
    reported = await court.registry.report_health("a", HEALTHY, details, "")
    assert await court.health() == reported


async def test_what_cannot_be_kept_proves_nothing_and_neither_does_what_was_before(court: Court) -> None:
    await court.register(health=Health(status=HEALTHY))
    for _ in range(2):
        await court.take(FAILED)
    kept = await court.health()
    for _ in range(5):
        health = await court.take(FAILED._replace(error="HTTP 503"), contact=0)
        assert health is not None
        assert (health.status, health.error) == (HEALTHY, "HTTP 503")
    assert await court.health() == kept
    for _ in range(2):
        await court.take(FAILED, contact=2)
        assert court.record().status == HEALTHY
    await court.take(FAILED, contact=2)
    assert court.record().status == UNHEALTHY


@pytest.mark.own_redis
async def test_a_transition_that_cannot_be_committed_is_told_to_who_asked(redis: RedisProcess, court: Court) -> None:
    await court.register()
    redis.kill()
    with pytest.raises(StoreUnavailable):
        await court.take(FAILED)
    assert court.record().status == UNKNOWN


async def test_results_of_what_is_gone_or_elsewhere_by_now_are_dropped(court: Court) -> None:
    probed = await court.register(endpoint="http://127.0.0.1:1")
    await court.register(endpoint="http://127.0.0.1:2")
    assert await court.take(OK, probed=probed) is None
    probed = court.record()
    await court.register(endpoint="http://127.0.0.1:2", health_check={"http": {"path": "/ready"}})
    assert await court.take(OK, probed=probed) is None
    probed = court.record()
    await court.registry.unregister("a")
    assert await court.take(OK, probed=probed) is None
    assert await court.told(0) == []


async def test_a_result_counts_though_something_else_about_the_service_has_changed(court: Court) -> None:
    probed = await court.register()
    await court.register(expected=False, version="2.0.0", metadata={"tags": ["new"]})
    health = await court.take(OK, probed=probed)
    assert health is not None
    assert health.status == HEALTHY
    after = court.record().message()
    assert (after.version, list(after.metadata.tags), after.health.status) == ("2.0.0", ["new"], HEALTHY)


async def test_of_two_results_at_once_one_makes_the_transition(court: Court) -> None:
    before = await court.register()
    healths = await asyncio.gather(court.take(FAILED), court.take(FAILED))
    assert [health.status for health in healths if health is not None] == [UNHEALTHY]
    assert court.record().revision == before.revision + 1
    await court.told(1)


async def test_a_status_that_was_reported_while_a_transition_is_committed_is_not_overwritten(court: Court) -> None:
    await court.register()
    taking = asyncio.create_task(court.take(FAILED))
    reporting = asyncio.create_task(court.registry.report_health("a", MAINTENANCE, None, ""))
    await asyncio.gather(taking, reporting)
    assert court.record().status == MAINTENANCE


async def test_a_result_for_a_service_of_another_process_counts_alone(court: Court) -> None:
    await court.register(expected=False)
    await court.take(FAILED)
    assert court.record().status == UNHEALTHY, "the first result decides, whoever asked"
    for _ in range(5):
        await court.take(OK)
        assert court.record().status == UNHEALTHY, "the other process may have seen failures in between"
    await court.take(OK, success_threshold=1)
    assert court.record().status == HEALTHY
    assert court.judge.self_preservation.counted == 0


async def test_a_service_that_is_let_go_and_taken_on_again_starts_over(court: Court) -> None:
    record = await court.register(health=Health(status=HEALTHY))
    for _ in range(2):
        await court.take(FAILED)
    court.judge.forget("a")
    court.judge.forget("a")
    assert court.judge.self_preservation.counted == 0
    court.judge.expect(record)
    assert court.judge.self_preservation.counted == 1
    await court.take(FAILED)
    assert court.record().status == HEALTHY


# Doubt.

NAMES = [f"s{i:02}" for i in range(20)]


async def fleet(court: Court) -> None:
    for name in NAMES:
        await court.register(name, health=Health(status=HEALTHY))


async def test_when_too_many_fail_at_once_statuses_freeze_and_everyone_is_told_once(court: Court) -> None:
    await fleet(court)
    for _ in range(5):
        for name in NAMES[:10]:
            await court.take(FAILED, name)
    assert court.judge.self_preservation.active
    assert {court.record(name).status for name in NAMES} == {HEALTHY}
    [notice] = await court.told(1)
    assert (notice.type, notice.reason) == (REGISTRY_ERROR, EventReason.EVENT_REASON_HEALTH_CHECK)
    assert notice.error == "10 of 20 services fail their probes at once; their statuses are frozen"
    assert not notice.HasField("service")
    assert (await court.health(NAMES[0])).error == "HTTP 500", "what is seen is shown all the same"


async def test_while_statuses_are_frozen_failures_cost_no_lease(court: Court) -> None:
    await fleet(court)
    for name in NAMES[:10]:
        await court.take(FAILED, name)
    await court.results.flush()
    await court.age_leases(NAMES)
    aged = await court.lease(NAMES[0])
    await court.take(FAILED, NAMES[0])
    assert await court.lease(NAMES[0]) > aged + 100_000_000_000


async def test_it_ends_by_itself_when_they_recover_and_what_fails_then_counts(court: Court) -> None:
    await fleet(court)
    for name in NAMES[:10]:
        await court.take(FAILED, name)
    for name in NAMES[:5]:
        await court.take(OK, name)
    assert not court.judge.self_preservation.active
    assert {court.record(name).status for name in NAMES} == {HEALTHY}
    for _ in range(2):
        await court.take(FAILED, NAMES[9])
    assert court.record(NAMES[9]).status == UNHEALTHY
    await court.told(2)


@pytest.mark.slow
async def test_a_true_mass_failure_shows_after_its_time(redis: RedisProcess) -> None:
    async with court_on(redis, self_preservation_max_seconds=1) as court:
        await fleet(court)
        for _ in range(3):
            for name in NAMES:
                await court.take(FAILED, name)
        assert {court.record(name).status for name in NAMES} == {HEALTHY}
        async with asyncio.timeout(TIMEOUT):
            while court.judge.self_preservation.active:
                await asyncio.sleep(0.01)
                await court.judge.review()
        for name in NAMES:
            await court.take(FAILED, name)
        assert {court.record(name).status for name in NAMES} == {UNHEALTHY}
        assert not court.judge.self_preservation.active
        assert [event.type for event in await court.told(21)] == [REGISTRY_ERROR] + [HEALTH_CHANGED] * 20


@pytest.mark.own_redis
async def test_doubt_that_cannot_be_told_is_doubt_all_the_same(redis: RedisProcess, court: Court) -> None:
    await fleet(court)
    for name in NAMES[:9]:
        await court.take(FAILED, name)
    redis.kill()
    await court.take(FAILED, NAMES[9])
    assert court.judge.self_preservation.active
