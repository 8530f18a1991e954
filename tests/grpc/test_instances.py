"""Instances: which process owns a name, and what happens to the one that owned it before."""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Maintenance, Service
from tests.grpc.calls import (
    DEGRADED,
    HEALTH_CHANGED,
    HEALTHY,
    MAINTENANCE,
    UNHEALTHY,
    UNKNOWN,
    UPDATED,
    Failure,
    disconnectable_followers,
    failure,
    get,
    health_of,
    heartbeat,
    redis_client,
    register,
    report,
    set_remaining_lease,
    update,
    watching,
)
from tests.grpc.probing import (
    ON_DEMAND,
    check,
    lease_end_ns,
    probing_with,
    register_and_wait_for_probe,
    service,
)
from tests.support.endpoints import BROKEN, Agent
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running

Lease = pb.Lease


def instance(instance_id: str, name: str = "a", **fields: Any) -> Service:
    """Return a service of one instance that lives by its heartbeats."""
    return small_service(name, instance_id=instance_id, health_check={"heartbeat": {}}, **fields)


async def renew(server: Server, *leases: Lease, names: Sequence[str] = ()) -> pb.HeartbeatResponse:
    return await server.stub.Heartbeat(pb.HeartbeatRequest(names=names, leases=leases))


async def unregister(server: Server, name: str, instance_id: str) -> Service:
    request = pb.UnregisterServiceRequest(name=name, instance_id=instance_id)
    return (await server.stub.UnregisterService(request)).service


def is_superseded(failed: Failure, name: str = "a") -> bool:
    expected = (grpc.StatusCode.ABORTED, "INSTANCE_SUPERSEDED", {"name": name})
    return (failed.code, failed.reason, failed.metadata) == expected


# Takeover.


async def test_later_registration_takes_the_name_over(server: Server) -> None:
    first = await register(server, instance("one", draining=True))
    assert (first.instance_id, first.draining, first.health.status) == ("one", True, HEALTHY)
    async with watching(server) as watch:
        second = await register(server, instance("two"))
        assert (second.instance_id, second.draining, second.registered_at) == ("two", False, first.registered_at)
        event = await watch.event()
        assert (event.type, event.reason) == (UPDATED, EventReason.EVENT_REASON_CLIENT_REQUEST)
        assert event.service == second == await get(server, "a")
        assert not (await register(server, small_service("a"))).instance_id, "without an instance, too"
        assert server.parts.store.counters.takeovers == 2


async def test_equal_registration_of_the_same_instance_changes_nothing(server: Server) -> None:
    first = await register(server, instance("one"))
    assert await register(server, instance("one")) == first
    assert server.parts.store.counters.takeovers == 0


async def test_takeover_starts_a_new_lease(server: Server, redis: RedisProcess) -> None:
    await register(server, instance("one"))
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "a", 10)
        await register(server, instance("two", ttl=Duration(seconds=100)))
        assert 90 < await client.ttl("ossa:services:a") <= 100


@pytest.mark.parametrize("status", [UNHEALTHY, DEGRADED, MAINTENANCE, UNKNOWN])
@pytest.mark.parametrize("probe", ["heartbeat", "http", "none"])
async def test_reported_health_ends_with_its_instance(
    server: Server, status: HealthStatus.ValueType, probe: str
) -> None:
    await register(server, small_service("a", instance_id="one", health_check={probe: {}}))
    await report(server, "a", status, error="the agent is leaving")
    again = await register(server, small_service("a", instance_id="two", health_check={probe: {}}))
    assert again.health.status == (HEALTHY if probe == "heartbeat" else UNKNOWN)
    assert not again.health.error
    newest = (await health_of(server, "a")).health
    assert (newest.status, newest.error) == (again.health.status, "")


async def test_healthy_service_stays_healthy_if_only_the_instance_changes(server: Server) -> None:
    first = await register(server, small_service("a", instance_id="one", health=Health(status=HEALTHY)))
    second = await register(server, small_service("a", instance_id="two", version="2.0.0"))
    assert second.health == first.health
    moved = await register(server, small_service("a", instance_id="three", endpoint="http://elsewhere.test"))
    assert moved.health.status == UNKNOWN
    await report(server, "a", HEALTHY)
    other = small_service("a", instance_id="four", endpoint="http://elsewhere.test", health_check={"none": {}})
    assert (await register(server, other)).health.status == UNKNOWN, "it is checked in another way"


@pytest.mark.parametrize("change", ["registration", "update"])
async def test_status_from_probes_ends_with_the_probes(server: Server, change: str) -> None:
    await register(server, small_service("a", health=Health(status=UNHEALTHY, error="connection refused")))
    changed = small_service("a", health_check={"heartbeat": {}})
    again = await (register(server, changed) if change == "registration" else update(server, changed, "health_check"))
    assert (again.health.status, again.health.error) == (HEALTHY, "")


async def test_update_keeps_instance_and_draining(server: Server) -> None:
    first = await register(server, instance("one", draining=True))
    for paths in ((), ("*",), ("version",)):
        sent = instance("two", version="2.0.0")
        changed = await update(server, sent, *paths)
        assert (changed.instance_id, changed.draining, changed.version) == ("one", True, "2.0.0"), paths
        await update(server, first, "version")
    for path in ("instance_id", "draining"):
        refused = await failure(update(server, instance("two"), path))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["update_mask.paths[0]"])
        assert "heartbeats" in refused.message


async def test_client_cannot_set_maintenance_by_a_registration(server: Server) -> None:
    sent = instance("one", maintenance=Maintenance(reason="mine"))
    assert not (await register(server, sent)).HasField("maintenance")


@pytest.mark.parametrize("bad", ["two words", "x" * 65, "é", "tab\t"])
async def test_invalid_instance_id_is_refused_with_its_field(server: Server, bad: str) -> None:
    for call, field in (
        (register(server, instance(bad)), "service.instance_id"),
        (report(server, "a", HEALTHY, instance_id=bad), "instance_id"),
        (unregister(server, "a", bad), "instance_id"),
        (renew(server, Lease(name="a"), Lease(name="b", instance_id=bad)), "leases[1].instance_id"),
        (renew(server, Lease(instance_id=bad), names=["-"]), "names[0]"),
    ):
        refused = await failure(call)
        assert (refused.code, refused.fields[0]) == (grpc.StatusCode.INVALID_ARGUMENT, field)
        also = ["leases[0].name", "leases[0].instance_id"] if field == "names[0]" else []
        assert refused.fields[1:] == also
        assert "1 to 64 printable ASCII characters without spaces" in refused.message


# The superseded instance.


async def test_heartbeat_of_a_superseded_instance_changes_nothing(server: Server, redis: RedisProcess) -> None:
    for each in (instance("one"), instance("two"), instance("only", "b"), small_service("c")):
        await register(server, each)
    before = await get(server, "a")
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "a", 10)
        answer = await renew(
            server,
            Lease(name="a", instance_id="one", draining=True),
            Lease(name="b", instance_id="only"),
            Lease(name="c", instance_id="one"),
            Lease(name="gone", instance_id="one"),
            names=["c", "gone"],
        )
        expected = pb.HeartbeatResponse(renewed_count=2, unknown_names=["gone"], superseded_names=["a", "c"])
        assert answer == expected, "a name without an instance renews whichever is registered"
        assert await client.ttl("ossa:services:a") <= 10
        assert await get(server, "a") == before
        assert await renew(server, Lease(name="a", instance_id="two")) == pb.HeartbeatResponse(renewed_count=1)
        assert await client.ttl("ossa:services:a") > 10
        assert server.parts.store.counters.superseded_leases == 2


async def test_keep_alive_reports_superseded_names_and_continues(server: Server) -> None:
    await register(server, instance("one"))
    stream = server.stub.KeepAlive()
    request = pb.KeepAliveRequest(leases=[Lease(name="a", instance_id="one")])
    await stream.write(request)
    assert await stream.read() == pb.KeepAliveResponse(renewed_count=1)
    await register(server, instance("two"))
    for _ in range(2):
        await stream.write(request)
        assert await stream.read() == pb.KeepAliveResponse(superseded_names=["a"])
    stream.cancel()


async def test_reports_and_removal_by_a_superseded_instance_are_refused(server: Server) -> None:
    await register(server, instance("one"))
    current = await register(server, instance("two"))
    for call in (
        report(server, "a", UNHEALTHY, instance_id="one"),
        report(server, "a", HEALTHY, instance_id="one"),
        report(server, "a", HealthStatus.HEALTH_STATUS_UNSPECIFIED, draining=True, instance_id="one"),
        unregister(server, "a", "one"),
    ):
        assert is_superseded(await failure(call))
    assert await get(server, "a") == current
    assert (await health_of(server, "a")).health == current.health
    assert await unregister(server, "a", "two") == current


async def test_process_that_lags_never_calls_the_registered_instance_superseded(
    server: Server, redis: RedisProcess
) -> None:
    async with running(redis.url) as other, disconnectable_followers(redis) as disconnect:
        await register(server, instance("one"))
        for i in range(10):
            await disconnect()
            current = f"i{i}"
            await register(server, instance(current))
            answer = await renew(other, Lease(name="a", instance_id=current))
            assert answer == pb.HeartbeatResponse(renewed_count=1)
            await disconnect()
            await register(server, instance("next"))
            assert is_superseded(await failure(report(other, "a", UNHEALTHY, instance_id=current)))
            assert is_superseded(await failure(unregister(other, "a", current)))
            await register(server, instance("last"))
            assert (await get(other, "a", min_revision=(await get(server, "a")).revision)).instance_id == "last"


async def test_heartbeat_accepts_10_000_leases(server: Server) -> None:
    await register(server, instance("i" * 64, "n" * 128, endpoint="http://agent.test"))
    leases = [Lease(name="n" * 128, instance_id="i" * 64, draining=False)]
    leases += [Lease(name=f"{i:0128}", instance_id="i" * 64, draining=True) for i in range(9_999)]
    answer = await renew(server, *leases)
    assert (answer.renewed_count, len(answer.unknown_names), len(answer.superseded_names)) == (1, 9_999, 0)
    refused = await failure(renew(server, *leases, names=["a"]))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["leases"])


# Draining.


async def test_draining_is_an_update_that_keeps_the_health(server: Server) -> None:
    first = await register(server, instance("one"))
    async with watching(server) as watch:
        for draining in (True, True, False):
            await renew(server, Lease(name="a", instance_id="one", draining=draining))
        await renew(server, Lease(name="a", instance_id="one"))
        unset = HealthStatus.HEALTH_STATUS_UNSPECIFIED
        assert await report(server, "a", unset, draining=True, instance_id="one") == first.health
        assert await report(server, "a", unset, draining=True) == first.health
        await report(server, "a", UNHEALTHY, draining=False, error="disk full")
        await report(server, "a", HEALTHY)
        events = [await watch.event() for _ in range(5)]
    assert [event.service.draining for event in events] == [True, False, True, False, False]
    assert [event.type for event in events] == [UPDATED] * 4 + [HEALTH_CHANGED]
    assert {event.reason for event in events} == {EventReason.EVENT_REASON_HEALTH_REPORT}
    assert [event.service.health.status for event in events] == [HEALTHY] * 3 + [UNHEALTHY, HEALTHY]


async def test_many_instances_drain_in_one_heartbeat(server: Server) -> None:
    names = [f"s{i}" for i in range(300)]
    request = pb.BatchRegisterServicesRequest(services=[instance("one", name) for name in names])
    await server.stub.BatchRegisterServices(request)
    answer = await renew(server, *(Lease(name=name, instance_id="one", draining=True) for name in names))
    assert answer == pb.HeartbeatResponse(renewed_count=300)
    found = await server.stub.DiscoverServices(pb.DiscoverServicesRequest(page_size=1000))
    assert {each.draining for each in found.services} == {True}
    assert len(found.services) == 300


async def test_last_lease_of_a_name_sets_draining_with_one_commit(server: Server) -> None:
    first = await register(server, instance("one"))
    leases = [Lease(name="a", instance_id="one", draining=i % 2 == 0) for i in range(999)]
    answer = await renew(server, *leases)
    assert answer == pb.HeartbeatResponse(renewed_count=1)
    changed = await get(server, "a")
    assert (changed.draining, changed.revision) == (True, first.revision + 1)
    await renew(server, *leases, Lease(name="a", instance_id="one", draining=True))
    assert (await get(server, "a")).revision == changed.revision


async def test_report_needs_a_status_unless_only_draining_is_set(server: Server) -> None:
    await register(server, instance("one"))
    unset = HealthStatus.HEALTH_STATUS_UNSPECIFIED
    for fields in ({}, {"draining": True, "error": "why"}, {"draining": True, "details": {"a": 1}}):
        refused = await failure(report(server, "a", unset, **fields))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["status"])


# Leases and probes.


async def test_probe_renews_the_lease_only_without_an_instance(
    probing: Server, agent: Agent, redis: RedisProcess
) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint(), instance_id="one"))
    await register_and_wait_for_probe(probing, service("b", agent.endpoint()))
    async with redis_client(redis) as client:
        for name, renews in (("a", False), ("b", True)):
            await set_remaining_lease(client, name, 10)
            before = await lease_end_ns(probing, name)
            assert (await check(probing, name)).status == HEALTHY
            assert (await lease_end_ns(probing, name) > before) is renews
            await report(probing, name, UNKNOWN)
            await set_remaining_lease(client, name, 10)
            before = await lease_end_ns(probing, name)
            assert (await check(probing, name)).status == HEALTHY, "this result is a change of status"
            assert (await lease_end_ns(probing, name) > before) is renews


@pytest.mark.usefixtures("no_pause_detection")
async def test_takeover_probes_the_new_instance_at_once_from_the_start(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **ON_DEMAND) as server:
        await register_and_wait_for_probe(server, service("a", agent.endpoint(), instance_id="one"))
        agent.response = BROKEN
        for _ in range(2):
            assert (await check(server)).status == HEALTHY
        requests = len(agent.requests)
        await register(server, service("a", agent.endpoint(), instance_id="two"))
        await agent.wait_for_requests(requests + 1)  # although the interval is an hour
        for expected in (HEALTHY, UNHEALTHY):
            assert (await check(server)).status == expected, "failures of the previous instance do not count"


@pytest.mark.usefixtures("no_pause_detection")
async def test_probe_of_the_previous_instance_does_not_decide_about_the_next(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **ON_DEMAND) as server:
        await register_and_wait_for_probe(server, service("a", agent.endpoint(), instance_id="one"))
        await report(server, "a", UNKNOWN)
        agent.open.clear()
        agent.script = [BROKEN]
        probe = asyncio.ensure_future(check(server))
        await agent.wait_for_requests(len(agent.requests) + 1)
        async with watching(server) as watch:
            await register(server, service("a", agent.endpoint(), instance_id="two"))
            assert (await watch.event()).service.health.status == UNKNOWN
            agent.open.set()
            await probe
            event = await watch.event()
            assert (event.type, event.service.health.status) == (HEALTH_CHANGED, HEALTHY), event.service.health.error


async def test_service_without_instance_still_lives_by_names(server: Server) -> None:
    await register(server, small_service("a"))
    assert await renew(server, Lease(name="a")) == await heartbeat(server, "a")
