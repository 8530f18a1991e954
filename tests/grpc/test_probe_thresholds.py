"""What follows from checks: statuses, events, leases."""

from functools import partial

import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import HealthStatus
from tests.grpc.calls import (
    DEGRADED,
    HEALTH_CHANGED,
    HEALTHY,
    MAINTENANCE,
    REGISTERED,
    UNHEALTHY,
    UNKNOWN,
    UNREGISTERED,
    UPDATED,
    age_lease,
    eventually,
    get,
    health_of,
    redis_client,
    register,
    report,
    update,
    watching,
)
from tests.grpc.probing import (
    ANSWERS,
    HANGS,
    OFTEN,
    ON_DEMAND,
    STATUSES,
    check,
    checks,
    events_until,
    gone,
    has_status,
    lease_of,
    probing_with,
    registered_and_settled,
    service,
    settled,
)
from tests.support.endpoints import BROKEN, FINE, Agent, agents, answer
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running

pytestmark = pytest.mark.usefixtures("never_stands_still")


@pytest.mark.parametrize(
    ("answers", "statuses"),
    [
        pytest.param("xxoxxoxxo", "HHHHHHHHH", id="flapping below the threshold"),
        pytest.param("xxxx", "HHUU", id="unhealthy after exactly three failures"),
        pytest.param("xxxoxoxoo", "HHUUUUUUH", id="healthy after exactly two successes"),
        pytest.param("ddodddd", "HHHHHDD", id="degraded after three slow answers"),
        pytest.param("dddoo", "HHDDH", id="no longer degraded after two"),
        pytest.param("xxxdd", "HHUUD", id="up again, but degraded"),
    ],
)
async def test_a_status_changes_after_exactly_as_many_results_and_only_changes_are_events(
    probing: Server, agent: Agent, answers: str, statuses: str
) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    async with watching(probing) as watch:
        assert await checks(probing, agent, answers) == statuses
        events = await events_until(probing, watch)

    transitions = [(a, b) for a, b in zip("H" + statuses, statuses, strict=False) if a != b]
    assert [(event.previous_health, event.service.health.status) for event in events] == [
        (STATUSES[before], STATUSES[after]) for before, after in transitions
    ]
    for event in events:
        assert (event.type, event.reason) == (HEALTH_CHANGED, EventReason.EVENT_REASON_HEALTH_CHECK)
        assert event.service.health.status_changed_at == event.service.health.last_check


@pytest.mark.parametrize(("first", "status"), [("o", HEALTHY), ("x", UNHEALTHY), ("d", DEGRADED)])
async def test_the_first_result_decides(
    probing: Server, agent: Agent, first: str, status: HealthStatus.ValueType
) -> None:
    agent.response = ANSWERS[first]
    async with watching(probing) as watch:
        await register(probing, service("a", agent.endpoint()))
        registered, changed = await watch.event(), await watch.event()

    assert (registered.type, registered.service.health.status) == (REGISTERED, UNKNOWN)
    assert (changed.type, changed.reason) == (HEALTH_CHANGED, EventReason.EVENT_REASON_HEALTH_CHECK)
    assert (changed.previous_health, changed.service.health.status) == (UNKNOWN, status)
    assert len(agent.requests) == 1


async def test_of_scheduled_checks_too_it_takes_exactly_as_many(redis: RedisProcess, agent: Agent) -> None:
    agent.script = [ANSWERS[each] for each in "oxoxxoxoo"]
    every_second = {"interval": "1s", "timeout": "1s", "failureThreshold": 2, "successThreshold": 2}
    async with probing_with(redis, **ON_DEMAND) as server, watching(server) as watch:
        await register(server, service("a", agent.endpoint(), every_second))
        statuses, came = [], []
        for _ in range(4):
            statuses.append((await watch.event()).service.health.status)
            came.append(len(agent.requests))

    # A check more may have come before the event was read; fewer were not enough.
    assert statuses == [UNKNOWN, HEALTHY, UNHEALTHY, HEALTHY]
    for count, least in zip(came[1:], (1, 5, 9), strict=True):
        assert least <= count <= least + 1


async def test_every_check_is_read_through_another_process_and_takes_no_revision(
    probing: Server, redis: RedisProcess, agent: Agent
) -> None:
    known = await registered_and_settled(probing, service("a", agent.endpoint()))
    async with running(redis.url) as other:
        assert (await get(other, "a", min_revision=known.revision)) == known
        last = known.health
        for said, error in ((BROKEN, "HTTP 500"), (FINE, ""), (answer(status="404 Gone"), "HTTP 404")):
            agent.response = said
            health = await check(probing)
            assert (await health_of(other, "a")).health == health
            assert (health.status, health.error) == (HEALTHY, error)
            assert health.last_check.ToNanoseconds() >= last.last_check.ToNanoseconds()
            assert health.response_time != last.response_time
            assert health.status_changed_at == known.health.status_changed_at
            last = health
        for server in (probing, other):
            assert await get(server, "a") == known
            told = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
            assert told.revision == known.revision


async def test_scheduled_checks_too_are_read_through_another_process(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server, running(redis.url) as other:
        await register(server, service("a", agent.endpoint(), {"failureThreshold": 100}))
        await settled(server, "a")
        known = await get(server, "a")
        seen: set[int] = set()

        async def read_five() -> bool:
            seen.add((await health_of(other, "a")).health.last_check.ToNanoseconds())
            return len(seen) >= 5

        await eventually(read_five, "five checks were read")
        assert (await get(server, "a")).revision == known.revision


# Leases.


async def test_a_service_that_answers_stays_registered_without_heartbeats(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server:
        await register(server, service("silent", agent.endpoint(), {"none": {}}, ttl={"seconds": 5}))
        await register(server, service("a", agent.endpoint(), ttl={"seconds": 5}))
        begun = await lease_of(server, "a")

        async def a_whole_lease_later() -> bool:
            return await lease_of(server, "a") > begun + 6_000_000_000

        await eventually(a_whole_lease_later, "the lease was renewed over and over")
        assert await gone(server, "silent"), "leases do end"
        assert not await gone(server, "a")


async def test_a_check_that_succeeds_renews_the_lease_and_one_that_fails_does_not(
    probing: Server, redis: RedisProcess, agent: Agent
) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    async with redis_client(redis) as client:
        await age_lease(client, "a", 100)
        aged = await lease_of(probing, "a")

        await checks(probing, agent, "x")
        assert await lease_of(probing, "a") == aged, "failed, without a transition"
        await checks(probing, agent, "xx")
        assert (await get(probing, "a")).health.status == UNHEALTHY
        assert await lease_of(probing, "a") == aged, "failed, with a transition"
        assert 90 < await client.ttl("ossa:services:a") <= 100

        await checks(probing, agent, "o")
        renewed = await lease_of(probing, "a")
        assert renewed > aged + 150_000_000_000, "succeeded, without a transition"
        assert await client.ttl("ossa:services:a") > 250
        await age_lease(client, "a", 100)
        await checks(probing, agent, "o")
        assert (await get(probing, "a")).health.status == HEALTHY
        assert await lease_of(probing, "a") >= renewed, "succeeded, with a transition"


async def test_the_lease_of_a_service_that_fails_its_checks_runs_out(redis: RedisProcess, agent: Agent) -> None:
    agent.response = BROKEN
    async with probing_with(redis, **OFTEN) as server, watching(server) as watch:
        await register(server, service("a", agent.endpoint(), ttl={"seconds": 5}))
        events = await watch.events(2)
        events.append(await watch.event())

    assert [event.type for event in events] == [REGISTERED, HEALTH_CHANGED, UNREGISTERED]
    assert events[2].reason == EventReason.EVENT_REASON_LEASE_EXPIRED
    assert len(agent.requests) > 3


# What else decides.


async def test_maintenance_outlasts_good_and_bad_checks_which_can_be_read_all_the_same(
    probing: Server, agent: Agent
) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    await report(probing, "a", MAINTENANCE)
    known = await get(probing, "a")
    async with watching(probing) as watch:
        assert await checks(probing, agent, "oooxxxxdddo") == "M" * 11
        agent.response = BROKEN
        health = await check(probing)
        assert (health.status, health.error) == (MAINTENANCE, "HTTP 500")
        assert (await health_of(probing, "a")).health == health
        assert await events_until(probing, watch) == []
    assert await get(probing, "a") == known

    await report(probing, "a", UNKNOWN)
    assert await checks(probing, agent, "o") == "H", "once it is lifted, checks decide again"


async def test_a_reported_status_is_undone_by_as_many_checks_as_any_other(probing: Server, agent: Agent) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    assert await checks(probing, agent, "ooo") == "HHH"
    await report(probing, "a", UNHEALTHY, error="out of quota")
    assert await checks(probing, agent, "oo") == "UH"

    assert await checks(probing, agent, "xxxxx") == "HHUUU"
    await report(probing, "a", HEALTHY)
    assert await checks(probing, agent, "xxx") == "HHU"

    await report(probing, "a", DEGRADED)
    assert await checks(probing, agent, "oo") == "DH"


async def test_another_endpoint_starts_over_and_is_what_is_probed_from_then_on(redis: RedisProcess) -> None:
    async with agents(2) as [old, new], probing_with(redis, **OFTEN) as server:
        new.response = BROKEN
        await register(server, service("a", old.endpoint()))
        await has_status(server, "a", HEALTHY)
        async with watching(server, types=[HEALTH_CHANGED, UPDATED]) as watch:
            moved = await register(server, service("a", new.endpoint()))
            assert moved.health.status == UNKNOWN
            assert not moved.health.HasField("last_check")
            moving, failing = await watch.event(), await watch.event()
        assert (moving.type, moving.service.health.status) == (UPDATED, UNKNOWN)
        assert (failing.previous_health, failing.service.health.status) == (UNKNOWN, UNHEALTHY)

        await new.wait_for_requests(1)
        asked = len(old.requests)
        await new.wait_for_requests(6)
        assert len(old.requests) == asked


async def test_a_changed_check_is_used_at_once(probing: Server, agent: Agent) -> None:
    await registered_and_settled(probing, service("a", agent.endpoint()))
    assert agent.requests == ["GET /health HTTP/1.1"]
    changed = service("a", agent.endpoint(), {"http": {"path": "/ready"}, "failureThreshold": 1})
    await update(probing, changed, "health_check")
    await agent.wait_for_requests(2)
    assert agent.requests[1] == "GET /ready HTTP/1.1"
    assert await checks(probing, agent, "x") == "U"


async def test_registering_again_what_is_registered_changes_nothing_about_its_checks(
    probing: Server, agent: Agent
) -> None:
    sent = service("a", agent.endpoint())
    await registered_and_settled(probing, sent)
    assert await checks(probing, agent, "xx") == "HH"
    await register(probing, sent)
    assert await checks(probing, agent, "x") == "U"
    assert len(agent.requests) == 4


@pytest.mark.parametrize(("kind", "status"), [("heartbeat", HEALTHY), ("none", UNKNOWN)])
async def test_what_is_not_to_be_probed_is_never_connected_to(
    redis: RedisProcess, kind: str, status: HealthStatus.ValueType
) -> None:
    async with agents(2) as [untouched, probed], probing_with(redis, **OFTEN) as server:
        registered = await register(server, service("quiet", untouched.endpoint(), {kind: {}}))
        assert registered.health.status == status
        await register(server, service("probed", probed.endpoint()))
        await probed.wait_for_requests(12)  # the first probe of all comes within a second

        assert await check(server, "quiet") == registered.health
        assert await get(server, "quiet") == registered
        assert untouched.connections == 0


async def test_a_service_that_is_no_longer_to_be_probed_is_left_alone(redis: RedisProcess) -> None:
    async with agents(2) as [agent, other], probing_with(redis, **OFTEN) as server:
        await register(server, service("a", agent.endpoint()))
        await agent.wait_for_requests(1)
        await update(server, service("a", agent.endpoint(), {"none": {}}), "health_check")
        await register(server, service("other", other.endpoint()))
        await other.wait_for_requests(1)
        asked = len(agent.requests)
        await other.wait_for_requests(12)
        assert len(agent.requests) == asked


async def test_a_services_own_interval_counts(redis: RedisProcess) -> None:
    async with agents(3) as [rare, frequent, usual]:
        async with probing_with(redis, **ON_DEMAND) as server:
            await register(server, service("frequent", frequent.endpoint(), {"interval": "1s"}))
            await frequent.wait_for_requests(3)
        async with probing_with(redis, **OFTEN) as server:
            await register(server, service("rare", rare.endpoint(), {"interval": "3600s", "timeout": "10s"}))
            await settled(server, "rare")
            await register(server, service("usual", usual.endpoint()))
            await usual.wait_for_requests(12)
            assert len(rare.requests) == 1


async def test_a_services_own_timeout_and_thresholds_count(probing: Server, agent: Agent) -> None:
    thresholds = {"failureThreshold": 1, "successThreshold": 4, "timeout": "0.200s"}
    agent.open.clear()
    await registered_and_settled(probing, service("a", agent.endpoint(), thresholds))
    assert (await check(probing)).error == HANGS
    agent.open.set()
    await update(probing, service("a", agent.endpoint(), {**thresholds, "timeout": "10s"}), "health_check.timeout")
    await agent.wait_for_requests(3)  # a changed check is made at once, and is the first success
    await eventually(partial(_is_fine, probing), "it is fine")
    assert await checks(probing, agent, "ooox") == "UUHU"


async def _is_fine(server: Server) -> bool:
    return not (await health_of(server, "a")).health.error
