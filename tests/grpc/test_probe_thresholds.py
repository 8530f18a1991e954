"""Effects of checks on statuses, events and leases."""

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
    eventually,
    get,
    health_of,
    redis_client,
    register,
    report,
    set_remaining_lease,
    update,
    watching,
)
from tests.grpc.probing import (
    ANSWERS,
    OFTEN,
    ON_DEMAND,
    STATUSES,
    TIMED_OUT,
    check,
    check_repeatedly,
    is_removed,
    lease_end_ns,
    probing_with,
    read_events,
    register_and_wait_for_probe,
    service,
    wait_for_first_probe,
    wait_for_status,
)
from tests.support.endpoints import BROKEN, FINE, Agent, agents, answer
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running

pytestmark = pytest.mark.usefixtures("no_pause_detection")


@pytest.mark.parametrize(
    ("answers", "statuses"),
    [
        pytest.param("xxoxxoxxo", "HHHHHHHHH", id="flapping below the threshold"),
        pytest.param("xxxx", "HHUU", id="unhealthy after exactly three failures"),
        pytest.param("xxxoxoxoo", "HHUUUUUUH", id="healthy after exactly two successes"),
        pytest.param("ddodddd", "HHHHHDD", id="degraded after three slow answers"),
        pytest.param("dddoo", "HHDDH", id="healthy after two fast answers"),
        pytest.param("xxxdd", "HHUUD", id="recovers to degraded"),
    ],
)
async def test_status_changes_at_the_threshold_and_only_changes_are_events(
    probing: Server, agent: Agent, answers: str, statuses: str
) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    async with watching(probing) as watch:
        assert await check_repeatedly(probing, agent, answers) == statuses
        events = await read_events(probing, watch)

    transitions = [(a, b) for a, b in zip("H" + statuses, statuses, strict=False) if a != b]
    assert [(event.previous_health, event.service.health.status) for event in events] == [
        (STATUSES[before], STATUSES[after]) for before, after in transitions
    ]
    for event in events:
        assert (event.type, event.reason) == (HEALTH_CHANGED, EventReason.EVENT_REASON_HEALTH_CHECK)
        assert event.service.health.status_changed_at == event.service.health.last_check


@pytest.mark.parametrize(("first", "status"), [("o", HEALTHY), ("x", UNHEALTHY), ("d", DEGRADED)])
async def test_first_result_replaces_unknown(
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


@pytest.mark.slow
async def test_scheduled_checks_change_the_status_at_the_threshold(redis: RedisProcess, agent: Agent) -> None:
    agent.script = [ANSWERS[each] for each in "oxoxxoxoo"]
    every_second = {"interval": "1s", "timeout": "1s", "failureThreshold": 2, "successThreshold": 2}
    async with probing_with(redis, **ON_DEMAND) as server, watching(server) as watch:
        await register(server, service("a", agent.endpoint(), every_second))
        statuses, request_counts = [], []
        for _ in range(4):
            statuses.append((await watch.event()).service.health.status)
            request_counts.append(len(agent.requests))

    # One more check may have been sent before the event was read; fewer are not enough.
    assert statuses == [UNKNOWN, HEALTHY, UNHEALTHY, HEALTHY]
    for count, minimum in zip(request_counts[1:], (1, 5, 9), strict=True):
        assert minimum <= count <= minimum + 1


async def test_check_is_visible_on_another_server_and_has_no_revision(
    probing: Server, redis: RedisProcess, agent: Agent
) -> None:
    known = await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    async with running(redis.url) as other:
        assert (await get(other, "a", min_revision=known.revision)) == known
        last = known.health
        for response, error in ((BROKEN, "HTTP 500"), (FINE, ""), (answer(status="404 Gone"), "HTTP 404")):
            agent.response = response
            health = await check(probing)
            assert (await health_of(other, "a")).health == health
            assert (health.status, health.error) == (HEALTHY, error)
            assert health.last_check.ToNanoseconds() >= last.last_check.ToNanoseconds()
            assert health.response_time.ToNanoseconds() > 0
            assert health.status_changed_at == known.health.status_changed_at
            last = health
        for server in (probing, other):
            assert await get(server, "a") == known
            registry = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
            assert registry.revision == known.revision


async def test_scheduled_checks_are_visible_on_another_server(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server, running(redis.url) as other:
        await register(server, service("a", agent.endpoint(), {"failureThreshold": 100}))
        await wait_for_first_probe(server, "a")
        known = await get(server, "a")
        seen: set[int] = set()

        async def read_five() -> bool:
            seen.add((await health_of(other, "a")).health.last_check.ToNanoseconds())
            return len(seen) >= 5

        await eventually(read_five, "five checks were read")
        assert (await get(server, "a")).revision == known.revision


# Leases.


@pytest.mark.slow
async def test_healthy_service_stays_registered_without_heartbeats(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server:
        await register(server, service("silent", agent.endpoint(), {"none": {}}, ttl={"seconds": 5}))
        await register(server, service("a", agent.endpoint(), ttl={"seconds": 5}))
        initial_end = await lease_end_ns(server, "a")

        async def renewed_past_its_length() -> bool:
            return await lease_end_ns(server, "a") > initial_end + 6_000_000_000

        await eventually(renewed_past_its_length, "the lease was renewed repeatedly")
        assert await is_removed(server, "silent"), "leases that are not renewed end"
        assert not await is_removed(server, "a")


async def test_only_successful_checks_renew_the_lease(probing: Server, redis: RedisProcess, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "a", 100)
        shortened = await lease_end_ns(probing, "a")

        await check_repeatedly(probing, agent, "x")
        assert await lease_end_ns(probing, "a") == shortened, "failed, without a transition"
        await check_repeatedly(probing, agent, "xx")
        assert (await get(probing, "a")).health.status == UNHEALTHY
        assert await lease_end_ns(probing, "a") == shortened, "failed, with a transition"
        assert 90 < await client.ttl("ossa:services:a") <= 100

        await check_repeatedly(probing, agent, "o")
        renewed = await lease_end_ns(probing, "a")
        assert renewed > shortened + 150_000_000_000, "succeeded, without a transition"
        assert await client.ttl("ossa:services:a") > 250
        await set_remaining_lease(client, "a", 100)
        await check_repeatedly(probing, agent, "o")
        assert (await get(probing, "a")).health.status == HEALTHY
        assert await lease_end_ns(probing, "a") >= renewed, "succeeded, with a transition"


@pytest.mark.slow
async def test_lease_of_a_failing_service_expires(redis: RedisProcess, agent: Agent) -> None:
    agent.response = BROKEN
    async with probing_with(redis, **OFTEN) as server, watching(server) as watch:
        await register(server, service("a", agent.endpoint(), ttl={"seconds": 5}))
        events = await watch.events(2)
        events.append(await watch.event())

    assert [event.type for event in events] == [REGISTERED, HEALTH_CHANGED, UNREGISTERED]
    assert events[2].reason == EventReason.EVENT_REASON_LEASE_EXPIRED
    assert len(agent.requests) > 3


# Maintenance, reports and changed checks.


async def test_checks_do_not_end_maintenance_but_can_be_read(probing: Server, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    await report(probing, "a", MAINTENANCE)
    known = await get(probing, "a")
    async with watching(probing) as watch:
        assert await check_repeatedly(probing, agent, "oooxxxxdddo") == "M" * 11
        agent.response = BROKEN
        health = await check(probing)
        assert (health.status, health.error) == (MAINTENANCE, "HTTP 500")
        assert (await health_of(probing, "a")).health == health
        assert await read_events(probing, watch) == []
    assert await get(probing, "a") == known

    await report(probing, "a", UNKNOWN)
    assert await check_repeatedly(probing, agent, "o") == "H", "after MAINTENANCE, checks decide again"


async def test_reported_status_is_replaced_at_the_usual_threshold(probing: Server, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    assert await check_repeatedly(probing, agent, "ooo") == "HHH"
    await report(probing, "a", UNHEALTHY, error="out of quota")
    assert await check_repeatedly(probing, agent, "oo") == "UH"

    assert await check_repeatedly(probing, agent, "xxxxx") == "HHUUU"
    await report(probing, "a", HEALTHY)
    assert await check_repeatedly(probing, agent, "xxx") == "HHU"

    await report(probing, "a", DEGRADED)
    assert await check_repeatedly(probing, agent, "oo") == "DH"


async def test_changed_endpoint_resets_the_status_and_is_probed_instead(redis: RedisProcess) -> None:
    async with agents(2) as [old, new], probing_with(redis, **OFTEN) as server:
        new.response = BROKEN
        await register(server, service("a", old.endpoint()))
        await wait_for_status(server, "a", HEALTHY)
        async with watching(server, types=[HEALTH_CHANGED, UPDATED]) as watch:
            moved = await register(server, service("a", new.endpoint()))
            assert moved.health.status == UNKNOWN
            assert not moved.health.HasField("last_check")
            moving, failing = await watch.event(), await watch.event()
        assert (moving.type, moving.service.health.status) == (UPDATED, UNKNOWN)
        assert (failing.previous_health, failing.service.health.status) == (UNKNOWN, UNHEALTHY)

        await new.wait_for_requests(1)
        requests = len(old.requests)
        await new.wait_for_requests(6)
        assert len(old.requests) == requests


async def test_changed_check_is_used_immediately(probing: Server, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    assert agent.requests == ["GET /health HTTP/1.1"]
    changed = service("a", agent.endpoint(), {"http": {"path": "/ready"}, "failureThreshold": 1})
    await update(probing, changed, "health_check")
    await agent.wait_for_requests(2)
    assert agent.requests[1] == "GET /ready HTTP/1.1"
    assert await check_repeatedly(probing, agent, "x") == "U"


async def test_identical_registration_keeps_the_results_of_checks(probing: Server, agent: Agent) -> None:
    sent = service("a", agent.endpoint())
    await register_and_wait_for_probe(probing, sent)
    assert await check_repeatedly(probing, agent, "xx") == "HH"
    await register(probing, sent)
    assert await check_repeatedly(probing, agent, "x") == "U"
    assert len(agent.requests) == 4


@pytest.mark.parametrize(("kind", "status"), [("heartbeat", HEALTHY), ("none", UNKNOWN)])
async def test_service_without_a_probe_is_never_connected_to(
    redis: RedisProcess, kind: str, status: HealthStatus.ValueType
) -> None:
    async with agents(2) as [untouched, probed], probing_with(redis, **OFTEN) as server:
        registered = await register(server, service("quiet", untouched.endpoint(), {kind: {}}))
        assert registered.health.status == status
        await register(server, service("probed", probed.endpoint()))
        await probed.wait_for_requests(12)  # the first probe is sent within a second

        assert await check(server, "quiet") == registered.health
        assert await get(server, "quiet") == registered
        assert untouched.connections == 0


async def test_service_whose_probe_was_removed_is_no_longer_probed(redis: RedisProcess) -> None:
    async with agents(2) as [agent, other], probing_with(redis, **OFTEN) as server:
        await register(server, service("a", agent.endpoint()))
        await agent.wait_for_requests(1)
        await update(server, service("a", agent.endpoint(), {"none": {}}), "health_check")
        await register(server, service("other", other.endpoint()))
        await other.wait_for_requests(1)
        requests = len(agent.requests)
        await other.wait_for_requests(12)
        assert len(agent.requests) == requests


@pytest.mark.slow
async def test_interval_of_a_service_overrides_the_default(redis: RedisProcess) -> None:
    async with agents(3) as [rare, frequent, usual]:
        async with probing_with(redis, **ON_DEMAND) as server:
            await register(server, service("frequent", frequent.endpoint(), {"interval": "1s"}))
            await frequent.wait_for_requests(3)
        async with probing_with(redis, **OFTEN) as server:
            await register(server, service("rare", rare.endpoint(), {"interval": "3600s", "timeout": "10s"}))
            await wait_for_first_probe(server, "rare")
            await register(server, service("usual", usual.endpoint()))
            await usual.wait_for_requests(12)
            assert len(rare.requests) == 1


async def test_timeout_and_thresholds_of_a_service_override_the_defaults(probing: Server, agent: Agent) -> None:
    thresholds = {"failureThreshold": 1, "successThreshold": 4, "timeout": "0.200s"}
    agent.open.clear()
    await register_and_wait_for_probe(probing, service("a", agent.endpoint(), thresholds))
    assert (await check(probing)).error == TIMED_OUT
    agent.open.set()
    await update(probing, service("a", agent.endpoint(), {**thresholds, "timeout": "10s"}), "health_check.timeout")
    await agent.wait_for_requests(3)  # a changed check is sent immediately and is the first success
    await eventually(partial(_has_no_error, probing), "the check succeeds")
    assert await check_repeatedly(probing, agent, "ooox") == "UUHU"


async def _has_no_error(server: Server) -> bool:
    return not (await health_of(server, "a")).health.error
