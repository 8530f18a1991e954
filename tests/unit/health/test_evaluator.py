"""Evaluation of probe results on a real store: committed, stored or dropped."""

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
from registry_server.app import open_parts
from registry_server.config import HealthCheckSettings
from registry_server.errors import Overloaded, StoreUnavailable
from registry_server.model.record import Record
from registry_server.parts import Parts
from registry_server.probes import Outcome, OutcomeKind, Plan
from registry_server.runtime.tasks import cancel
from registry_server.security.limits import Shares
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
NOT_SENT = Outcome(OutcomeKind.INCONCLUSIVE, 0.0, "the registry has too many open files")


class Harness:
    """An evaluator whose results come from the test, and the events that a watcher received."""

    def __init__(self, parts: Parts) -> None:
        self.registry = parts.registry
        self.evaluator: HealthEvaluator = parts.monitor._evaluator
        self.results = parts.monitor._results
        self.events: list[Event] = []

    async def watch(self) -> None:
        with await self.registry.watch(WatchEventsRequest()) as watcher:
            async for batch in watcher:
                self.events += WatchEventsResponse.FromString(batch.wire).events

    async def register(self, name: str = "a", *, tracked: bool = True, **fields: Any) -> Record:
        await self.registry.register(small_service(name, **fields))
        if tracked:
            self.evaluator.track_service(self.record(name))
        return self.record(name)

    def record(self, name: str = "a") -> Record:
        return self.registry._replica.records[name]

    async def apply_result(
        self,
        outcome: Outcome,
        name: str = "a",
        *,
        probed: Record | None = None,
        connection: int = 1,
        owner: str = "",
        **health_check: Any,
    ) -> Health | None:
        record = probed or self.record(name)
        plan = Plan.of(record.message(), HealthCheckSettings(**health_check), owner)
        self.evaluator._connection_since = lambda _: connection
        return await self.evaluator.apply_result(record, plan, outcome, time.monotonic())

    async def health(self, name: str = "a") -> Health:
        await self.results.flush()
        return (await self.registry.health(name))[0]

    async def lease_end(self, name: str = "a") -> int:
        await self.results.flush()
        _, ends = await self.registry.health(name)
        assert ends is not None
        return ends.ToNanoseconds()

    async def shorten_leases(self, names: Iterable[str]) -> None:
        """Move the end of leases 150 seconds back, half their length."""
        store: Any = self.registry._store
        for name in names:
            ends = await store._client.zscore(store.keys.leases, name)
            await store._client.zadd(store.keys.leases, {name: ends - 150_000})

    async def wait_for_health_events(self, count: int) -> list[Event]:
        """Wait for ``count`` health changes and notices, fail if there are more, and return them."""

        def events() -> list[Event]:
            return [event for event in self.events if event.type in (HEALTH_CHANGED, REGISTRY_ERROR)]

        async with asyncio.timeout(TIMEOUT):
            while len(events()) < count:
                await asyncio.sleep(0.005)
        assert len(events()) == count
        return events()


@asynccontextmanager
async def open_harness(redis: RedisProcess, **health_check: Any) -> AsyncIterator[Harness]:
    async with open_parts(settings(redis.url, health_check={**health_check, "enabled": False})) as parts:
        async with asyncio.timeout(TIMEOUT):
            await parts.loaded.wait()
        harness = Harness(parts)
        watching = asyncio.create_task(harness.watch())
        try:
            yield harness
        finally:
            await cancel([watching])


@pytest.fixture
async def harness(redis: RedisProcess) -> AsyncIterator[Harness]:
    async with open_harness(redis) as opened:
        yield opened


async def test_status_change_is_committed_with_the_result_of_the_probe(harness: Harness) -> None:
    details = Struct()
    details["db"] = "down"
    before = (await harness.register()).message()
    health = await harness.apply_result(FAILED._replace(details=details))
    assert health is not None
    assert (health.status, health.error, health.details) == (UNHEALTHY, "HTTP 500", details)
    assert health.response_time.ToMicroseconds() == 20_000
    assert health.last_check == health.status_changed_at
    after = harness.record().message()
    assert after.health == health
    assert after.updated_at == health.last_check
    [event] = await harness.wait_for_health_events(1)
    assert (event.service, event.previous_health, event.revision) == (after, UNKNOWN, before.revision + 1)
    assert event.reason == EventReason.EVENT_REASON_HEALTH_CHECK


async def test_result_without_status_change_is_stored_without_a_revision(harness: Harness) -> None:
    await harness.register(health=Health(status=HEALTHY))
    before = harness.record().message()
    health = await harness.apply_result(FAILED)
    assert health is not None
    assert (health.status, health.error) == (HEALTHY, "HTTP 500")
    shown = await harness.health()
    assert (shown.status, shown.error, shown.last_check) == (HEALTHY, "HTTP 500", health.last_check)
    assert shown.status_changed_at == before.health.status_changed_at
    assert harness.record().message() == before


@pytest.mark.parametrize("status", [UNKNOWN, HEALTHY, UNHEALTHY, DEGRADED, MAINTENANCE])
async def test_inconclusive_probe_changes_no_status(harness: Harness, status: HealthStatus.ValueType) -> None:
    await harness.register(health=Health(status=status))
    before = harness.record()
    for _ in range(5):
        health = await harness.apply_result(NOT_SENT)
        assert health is not None
        assert (health.status, health.error) == (status, NOT_SENT.error)
    assert (await harness.health()).error == NOT_SENT.error
    assert harness.record() is before


async def test_inconclusive_probe_neither_extends_nor_resets_a_streak(harness: Harness) -> None:
    await harness.register(health=Health(status=HEALTHY))
    for outcome in (FAILED, NOT_SENT, FAILED, NOT_SENT):
        await harness.apply_result(outcome)
        assert harness.record().status == HEALTHY
    await harness.apply_result(FAILED)
    assert harness.record().status == UNHEALTHY


async def test_inconclusive_probe_renews_the_lease(harness: Harness) -> None:
    """A fault of the registry must not evict a service."""
    await harness.register(health=Health(status=HEALTHY))
    await harness.shorten_leases(["a"])
    shortened = await harness.lease_end()
    await harness.apply_result(NOT_SENT)
    assert await harness.lease_end() > shortened + 100_000_000_000


async def test_newer_report_replaces_a_pending_result(harness: Harness) -> None:
    await harness.register(health=Health(status=HEALTHY))
    details = Struct()
    details["by"] = "the agent"
    await harness.apply_result(OK)  # pending until the next batch is written
    reported = await harness.registry.report_health("a", HEALTHY, details, "")
    assert await harness.health() == reported


async def test_store_outage_discards_results_during_and_before_it(harness: Harness) -> None:
    await harness.register(health=Health(status=HEALTHY))
    for _ in range(2):
        await harness.apply_result(FAILED)
    stored = await harness.health()
    for _ in range(5):
        health = await harness.apply_result(FAILED._replace(error="HTTP 503"), connection=0)
        assert health is not None
        assert (health.status, health.error) == (HEALTHY, "HTTP 503")
    assert await harness.health() == stored
    for _ in range(2):
        await harness.apply_result(FAILED, connection=2)
        assert harness.record().status == HEALTHY
    await harness.apply_result(FAILED, connection=2)
    assert harness.record().status == UNHEALTHY


@pytest.mark.own_redis
async def test_failed_commit_of_a_status_change_is_raised_to_the_caller(redis: RedisProcess, harness: Harness) -> None:
    await harness.register()
    redis.kill()
    with pytest.raises(StoreUnavailable):
        await harness.apply_result(FAILED)
    assert harness.record().status == UNKNOWN


async def test_refused_status_change_renews_the_lease(harness: Harness) -> None:
    """Otherwise a caller whose writes use up a limit would evict services that have just started."""
    await harness.register()
    await harness.shorten_leases(["a"])
    shortened = await harness.lease_end()
    harness.registry._writes._places = Shares(0)
    with pytest.raises(Overloaded):
        await harness.apply_result(OK)
    assert await harness.lease_end() > shortened + 100_000_000_000
    assert (await harness.health()).status == UNKNOWN


async def test_result_is_dropped_if_the_service_moved_changed_or_was_removed(harness: Harness) -> None:
    probed = await harness.register(endpoint="http://127.0.0.1:1")
    await harness.register(endpoint="http://127.0.0.1:2")
    assert await harness.apply_result(OK, probed=probed) is None
    probed = harness.record()
    await harness.register(endpoint="http://127.0.0.1:2", health_check={"http": {"path": "/ready"}})
    assert await harness.apply_result(OK, probed=probed) is None
    probed = harness.record()
    await harness.registry.unregister("a")
    assert await harness.apply_result(OK, probed=probed) is None
    assert await harness.wait_for_health_events(0) == []


async def test_result_counts_after_a_change_of_unrelated_fields(harness: Harness) -> None:
    probed = await harness.register()
    await harness.register(tracked=False, version="2.0.0", metadata={"tags": ["new"]})
    health = await harness.apply_result(OK, probed=probed)
    assert health is not None
    assert health.status == HEALTHY
    after = harness.record().message()
    assert (after.version, list(after.metadata.tags), after.health.status) == ("2.0.0", ["new"], HEALTHY)


async def test_concurrent_results_commit_one_status_change(harness: Harness) -> None:
    before = await harness.register()
    healths = await asyncio.gather(harness.apply_result(FAILED), harness.apply_result(FAILED))
    assert [health.status for health in healths if health is not None] == [UNHEALTHY]
    assert harness.record().revision == before.revision + 1
    await harness.wait_for_health_events(1)


async def test_concurrent_report_is_not_overwritten_by_a_status_change(harness: Harness) -> None:
    await harness.register()
    applying = asyncio.create_task(harness.apply_result(FAILED))
    reporting = asyncio.create_task(harness.registry.report_health("a", MAINTENANCE, None, ""))
    await asyncio.gather(applying, reporting)
    assert harness.record().status == MAINTENANCE


async def test_result_for_a_service_of_another_process_is_evaluated_alone(harness: Harness) -> None:
    await harness.register(tracked=False)
    await harness.apply_result(FAILED)
    assert harness.record().status == UNHEALTHY, "the first result replaces UNKNOWN"
    for _ in range(5):
        await harness.apply_result(OK)
        assert harness.record().status == UNHEALTHY, "the other process may have seen failures in between"
    await harness.apply_result(OK, success_threshold=1)
    assert harness.record().status == HEALTHY
    assert harness.evaluator.self_preservation.counted == 0


async def test_service_that_is_tracked_again_starts_a_new_streak(harness: Harness) -> None:
    record = await harness.register(health=Health(status=HEALTHY))
    for _ in range(2):
        await harness.apply_result(FAILED)
    harness.evaluator.forget_service("a")
    harness.evaluator.forget_service("a")
    assert harness.evaluator.self_preservation.counted == 0
    harness.evaluator.track_service(record)
    assert harness.evaluator.self_preservation.counted == 1
    await harness.apply_result(FAILED)
    assert harness.record().status == HEALTHY


# Self-preservation.

NAMES = [f"s{i:02}" for i in range(20)]


async def register_fleet(harness: Harness) -> None:
    for name in NAMES:
        await harness.register(name, health=Health(status=HEALTHY))


async def test_mass_failure_freezes_statuses_and_publishes_one_notice(harness: Harness) -> None:
    await register_fleet(harness)
    for _ in range(5):
        for name in NAMES[:10]:
            await harness.apply_result(FAILED, name)
    assert harness.evaluator.self_preservation.active
    assert {harness.record(name).status for name in NAMES} == {HEALTHY}
    [notice] = await harness.wait_for_health_events(1)
    assert (notice.type, notice.reason) == (REGISTRY_ERROR, EventReason.EVENT_REASON_HEALTH_CHECK)
    assert notice.error == "self-preservation: 10 of 20 services fail their probes at once; statuses are frozen"
    assert not notice.HasField("service")
    assert (await harness.health(NAMES[0])).error == "HTTP 500", "results are still stored"


async def test_failures_of_one_owner_freeze_only_its_statuses_and_name_no_owner(harness: Harness) -> None:
    owners = {"evil": NAMES[:10], "good": ["g1", "g2"]}
    for owner, names in owners.items():
        for name in names:
            harness.registry._replica.owners[name] = owner
            await harness.register(name, health=Health(status=HEALTHY))
            harness.registry._replica.owners[name] = owner
            harness.evaluator.track_service(harness.record(name))
    for _ in range(3):
        for owner, names in owners.items():
            for name in names if owner == "evil" else ["g1"]:
                await harness.apply_result(FAILED, name, owner=owner)
    assert {harness.record(name).status for name in owners["evil"]} == {HEALTHY}
    assert [harness.record(name).status for name in owners["good"]] == [UNHEALTHY, HEALTHY]
    notice, changed = await harness.wait_for_health_events(2)
    assert notice.error == (
        "self-preservation: 10 of 10 services of one owner fail their probes at once; their statuses are frozen"
    )
    assert changed.service.name == "g1"


async def test_failure_renews_the_lease_during_self_preservation(harness: Harness) -> None:
    await register_fleet(harness)
    for name in NAMES[:10]:
        await harness.apply_result(FAILED, name)
    await harness.results.flush()
    await harness.shorten_leases(NAMES)
    shortened = await harness.lease_end(NAMES[0])
    await harness.apply_result(FAILED, NAMES[0])
    assert await harness.lease_end(NAMES[0]) > shortened + 100_000_000_000


async def test_self_preservation_ends_on_recovery_and_later_failures_count(harness: Harness) -> None:
    await register_fleet(harness)
    for name in NAMES[:10]:
        await harness.apply_result(FAILED, name)
    for name in NAMES[:5]:
        await harness.apply_result(OK, name)
    assert not harness.evaluator.self_preservation.active
    assert {harness.record(name).status for name in NAMES} == {HEALTHY}
    for _ in range(2):
        await harness.apply_result(FAILED, NAMES[9])
    assert harness.record(NAMES[9]).status == UNHEALTHY
    await harness.wait_for_health_events(2)


@pytest.mark.slow
async def test_persistent_mass_failure_becomes_visible_after_the_time_limit(redis: RedisProcess) -> None:
    async with open_harness(redis, self_preservation_max_seconds=1) as harness:
        await register_fleet(harness)
        for _ in range(3):
            for name in NAMES:
                await harness.apply_result(FAILED, name)
        assert {harness.record(name).status for name in NAMES} == {HEALTHY}
        async with asyncio.timeout(TIMEOUT):
            while harness.evaluator.self_preservation.active:
                await asyncio.sleep(0.01)
                await harness.evaluator.review()
        for name in NAMES:
            await harness.apply_result(FAILED, name)
        assert {harness.record(name).status for name in NAMES} == {UNHEALTHY}
        assert not harness.evaluator.self_preservation.active
        assert [event.type for event in await harness.wait_for_health_events(21)] == [REGISTRY_ERROR] + [
            HEALTH_CHANGED
        ] * 20


@pytest.mark.own_redis
async def test_self_preservation_starts_although_its_notice_cannot_be_published(
    redis: RedisProcess, harness: Harness
) -> None:
    await register_fleet(harness)
    for name in NAMES[:9]:
        await harness.apply_result(FAILED, name)
    redis.kill()
    await harness.apply_result(FAILED, NAMES[9])
    assert harness.evaluator.self_preservation.active


# Maintenance by operators.


async def observe(harness: Harness, *outcomes: Outcome, **fields: Any) -> str:
    """Apply results to a service in maintenance; return the initials of the statuses observed after each of them."""
    seen = ""
    for outcome in outcomes:
        await harness.apply_result(outcome, **fields)
        newest = await harness.registry.newest_health("a")
        assert (newest.health.status, harness.record().status) == (MAINTENANCE, MAINTENANCE)
        assert newest.observed is not None
        seen += HealthStatus.Name(newest.observed.status).removeprefix("HEALTH_STATUS_")[0]
    return seen


async def test_thresholds_apply_to_what_is_observed_in_maintenance(harness: Harness) -> None:
    await harness.register(health=Health(status=HEALTHY))
    await harness.registry.set_maintenance("a", enabled=True)
    assert await observe(harness, FAILED, FAILED, FAILED, OK, OK, FAILED, NOT_SENT, FAILED, FAILED) == "HHUUHHHHU"
    assert [event.service.health.status for event in await harness.wait_for_health_events(1)] == [MAINTENANCE]
    ended = await harness.registry.set_maintenance("a", enabled=False)
    assert (ended.health.status, ended.health.error) == (UNHEALTHY, "HTTP 500")


async def test_result_of_a_service_that_reports_maintenance_is_evaluated_unparsed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await harness.register(health=Health(status=MAINTENANCE))
    plan = Plan.of(record.message(), HealthCheckSettings())
    monkeypatch.delattr(Record, "message")  # which takes milliseconds for large services, and results come in batches
    verdict = harness.evaluator.evaluate(record, plan, OK, time.monotonic())
    assert not verdict.changes


async def test_report_in_maintenance_lasts_until_the_thresholds_decide(harness: Harness) -> None:
    await harness.register(health=Health(status=HEALTHY))
    await harness.registry.set_maintenance("a", enabled=True)
    assert await observe(harness, OK, OK, OK, OK) == "HHHH"
    await harness.registry.report_health("a", UNHEALTHY, None, "")
    assert await observe(harness, OK, OK) == "UH"
    await harness.registry.report_health("a", MAINTENANCE, None, "")
    assert await observe(harness, OK, FAILED, OK) == "MMM"


async def test_result_during_an_outage_is_not_observed_in_maintenance(harness: Harness) -> None:
    await harness.register(health=Health(status=HEALTHY))
    await harness.registry.set_maintenance("a", enabled=True)
    assert await observe(harness, FAILED, FAILED, FAILED, connection=0) == "HHH"


async def test_failed_probes_of_services_in_maintenance_freeze_nothing(redis: RedisProcess) -> None:
    async with open_harness(redis, self_preservation_min_failures=2) as harness:
        for name in "abcd":
            await harness.register(name, health=Health(status=HEALTHY))
        for name in "abc":
            await harness.registry.set_maintenance(name, enabled=True)
            harness.evaluator.track_service(harness.record(name))  # as the monitor does
            await harness.apply_result(FAILED, name)
        assert not harness.evaluator.self_preservation.active
        for _ in range(3):
            await harness.apply_result(FAILED, "d")
        assert harness.record("d").status == UNHEALTHY
