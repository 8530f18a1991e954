"""Maintenance by operators: who starts and ends it, what does not end it, and what is observed meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service, ServiceFilter
from registry_server.health import maintenance
from tests.grpc.calls import (
    DEGRADED,
    HEALTH_CHANGED,
    HEALTHY,
    MAINTENANCE,
    UNHEALTHY,
    UNKNOWN,
    UNREGISTERED,
    UNSPECIFIED,
    UPDATED,
    eventually,
    failure,
    find_names,
    get,
    health_of,
    heartbeat,
    kind_and_name,
    redis_client,
    register,
    report,
    set_remaining_lease,
    update,
    watching,
)
from tests.grpc.probing import OFTEN, check, probing_with, service, wait_for_status
from tests.support.auditing import audit_lines
from tests.support.endpoints import BROKEN, FINE, Agent
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import Server, running

Write = Callable[[Server], Awaitable[object]]


async def set_maintenance(server: Server, name: str = "a", *, enabled: bool = True, reason: str = "") -> Service:
    request = pb.SetMaintenanceRequest(name=name, enabled=enabled, reason=reason)
    return (await server.stub.SetMaintenance(request)).service


async def end(server: Server, name: str = "a") -> Health:
    """End the maintenance and return the health after it."""
    return (await set_maintenance(server, name, enabled=False)).health


async def observed(server: Server, name: str = "a") -> Health:
    return (await health_of(server, name)).observed


def reported(name: str = "a", status: HealthStatus.ValueType = HEALTHY, **fields: Any) -> Service:
    """Return a service without probes that registers with a status."""
    return service(name, f"http://{name}.test:8080", {"none": {}}, health=Health(status=status), **fields)


# Start and end.


async def test_start_and_end_are_one_health_change_each(server: Server) -> None:
    before = await register(server, reported(status=DEGRADED))
    async with watching(server) as watch:
        started = await set_maintenance(server, reason="disk replacement")
        event = await watch.event()
        assert (event.type, event.previous_health, event.service) == (HEALTH_CHANGED, DEGRADED, started)
        assert event.reason == EventReason.EVENT_REASON_CLIENT_REQUEST
        ended = await set_maintenance(server, enabled=False)
        event = await watch.event()
        assert (event.type, event.previous_health, event.service) == (HEALTH_CHANGED, MAINTENANCE, ended)
    assert (started.health.status, started.health.error) == (MAINTENANCE, "disk replacement")
    assert (started.maintenance.reason, started.maintenance.by) == ("disk replacement", "")
    assert started.maintenance.since == started.health.status_changed_at == started.updated_at
    assert (ended.health.status, ended.HasField("maintenance")) == (DEGRADED, False)
    for each in (before, ended):  # nothing else has changed
        for field in ("health", "updated_at", "revision"):
            each.ClearField(field)
    assert before == ended


async def test_calls_that_change_nothing_send_no_event(server: Server) -> None:
    await register(server, reported())
    untouched = await set_maintenance(server, enabled=False)
    async with watching(server) as watch:
        first = await set_maintenance(server, reason="one")
        assert await set_maintenance(server, reason="one") == first
        second = await set_maintenance(server, reason="another")
        ended = await set_maintenance(server, enabled=False)
        assert await set_maintenance(server, enabled=False) == ended
        await register(server, small_service("next"))
        events = [await watch.event() for _ in range(4)]
    assert untouched.revision == 1
    assert [event.type for event in events[:3]] == [HEALTH_CHANGED, UPDATED, HEALTH_CHANGED]
    assert [event.revision for event in events] == [2, 3, 4, 5], "no revision"
    assert kind_and_name(events[3]) == ("REGISTERED", "next")
    assert second.maintenance.since == first.maintenance.since
    assert second.health.error == second.maintenance.reason == "another"


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.SetMaintenanceRequest(enabled=True), ["name"]),
        (pb.SetMaintenanceRequest(name="not a name", enabled=True), ["name"]),
        (pb.SetMaintenanceRequest(name="a", enabled=True, reason="r" * 1025), ["reason"]),
        (pb.SetMaintenanceRequest(name="a", reason="done"), ["reason"]),
    ],
)
async def test_invalid_request_names_the_field(
    server: Server, request_: pb.SetMaintenanceRequest, fields: list[str]
) -> None:
    await register(server, reported())
    error = await failure(server.stub.SetMaintenance(request_))
    assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)


async def test_unknown_name_is_not_found(server: Server) -> None:
    for enabled in (True, False):
        assert (await failure(set_maintenance(server, enabled=enabled))).reason == "SERVICE_NOT_FOUND"


async def test_operator_is_recorded_and_agents_are_refused(redis: RedisProcess, tmp_path: Path) -> None:
    policy = Policy(tmp_path)
    with audit_lines() as changes:
        async with running(redis.url, security=policy.section) as server:
            stub = server.stub
            own = reported("fleet-own")
            await stub.RegisterService(pb.RegisterServiceRequest(service=own), metadata=policy.metadata("agent"))
            request = pb.SetMaintenanceRequest(name=own.name, enabled=True)
            refused = await failure(stub.SetMaintenance(request, metadata=policy.metadata("agent")))
            answer = await stub.SetMaintenance(request, metadata=policy.metadata("operator"))
            # The agent's own report is accepted, but does not end the maintenance.
            status = pb.ReportServiceHealthRequest(name=own.name, status=UNHEALTHY)
            seen = await stub.ReportServiceHealth(status, metadata=policy.metadata("agent"))
            other = await failure(stub.ReportServiceHealth(status, metadata=policy.metadata("other")))
    assert refused.code is other.code is grpc.StatusCode.PERMISSION_DENIED
    assert answer.service.maintenance.by == "operator"
    assert seen.health.status == MAINTENANCE
    lines = [line for line in changes if line["operation"] == "set_maintenance"]
    assert [(line["identity"], line["outcome"]) for line in lines][-1] == ("operator", "ok")


# What does not end it.


async def register_again(server: Server) -> None:
    await register(server, reported())


async def register_without_status(server: Server) -> None:
    await register(server, service("a", "http://a.test:8080", {"none": {}}))


async def register_elsewhere(server: Server) -> None:
    await register(server, service("a", "http://elsewhere.test:8080", {"none": {}}))


async def register_as_read_elsewhere(server: Server) -> None:
    moved = await get(server, "a")
    moved.endpoint = "http://elsewhere.test:8080"
    await register(server, moved)


async def register_with_heartbeat(server: Server) -> None:
    await register(server, service("a", "http://a.test:8080", {"heartbeat": {}}))


async def register_unhealthy(server: Server) -> None:
    await register(server, reported(status=UNHEALTHY))


async def register_as_read(server: Server) -> None:
    await register(server, await get(server, "a"))


async def update_status(server: Server) -> None:
    await update(server, reported(status=UNHEALTHY), "health.status")


async def update_as_read(server: Server) -> None:
    await update(server, await get(server, "a"), "*")


async def update_content(server: Server) -> None:
    await update(server, reported(version="2.0.0"), "version")


async def report_unhealthy(server: Server) -> None:
    await report(server, "a", UNHEALTHY, error="down")


async def report_maintenance(server: Server) -> None:
    await report(server, "a", MAINTENANCE)


async def send_heartbeat(server: Server) -> None:
    await heartbeat(server, "a")


WRITES: dict[Write, HealthStatus.ValueType] = {
    register_again: HEALTHY,
    register_without_status: HEALTHY,
    register_elsewhere: UNKNOWN,
    register_as_read_elsewhere: UNKNOWN,
    register_with_heartbeat: HEALTHY,
    register_unhealthy: UNHEALTHY,
    register_as_read: HEALTHY,
    update_status: UNHEALTHY,
    update_as_read: HEALTHY,
    update_content: HEALTHY,
    report_unhealthy: UNHEALTHY,
    report_maintenance: MAINTENANCE,
    send_heartbeat: HEALTHY,
}
"""Calls of agents, and the status that they leave to a healthy service."""


@pytest.mark.parametrize(("write", "status"), WRITES.items(), ids=lambda value: getattr(value, "__name__", ""))
async def test_write_shows_only_once_the_maintenance_ends(
    server: Server, write: Write, status: HealthStatus.ValueType
) -> None:
    await register(server, reported())
    started = await set_maintenance(server, reason="why")
    await write(server)
    now, newest = await get(server, "a"), await health_of(server, "a")
    assert now.maintenance == started.maintenance
    assert now.health.status == newest.health.status == MAINTENANCE
    assert (newest.health.error, newest.observed.status) == ("why", status)
    assert await find_names(server, ServiceFilter(health=[MAINTENANCE])) == ["a"]
    assert (await server.stub.GetStats(pb.GetStatsRequest())).stats.services_in_maintenance == 1
    assert (await end(server)).status == status
    assert (await health_of(server, "a")).observed.status == status


async def test_reports_and_repeated_registrations_send_no_event(server: Server) -> None:
    await register(server, reported())
    async with watching(server) as watch:
        await set_maintenance(server)
        for write in (report_unhealthy, register_again, update_status, register_without_status, register_as_read):
            await write(server)
        await register(server, small_service("next"))
        assert [kind_and_name(await watch.event()) for _ in range(2)] == [
            ("HEALTH_CHANGED", "a"),
            ("REGISTERED", "next"),
        ]


async def test_last_report_is_complete_after_the_maintenance(server: Server) -> None:
    await register(server, reported())
    await set_maintenance(server, reason="why")
    answer = await report(server, "a", UNHEALTHY, error="out of memory", details={"free": 0.0})
    assert (answer.status, answer.error) == (MAINTENANCE, "why")
    seen = await observed(server)
    assert (seen.status, seen.error, seen.details["free"]) == (UNHEALTHY, "out of memory", 0.0)
    health = await end(server)
    assert (health.status, health.error, health.details["free"]) == (UNHEALTHY, "out of memory", 0.0)
    assert health.last_check == answer.last_check
    assert health.status_changed_at.ToNanoseconds() > answer.last_check.ToNanoseconds()


async def test_reported_maintenance_is_not_lifted_by_that_of_an_operator(server: Server) -> None:
    await register(server, reported())
    await report(server, "a", MAINTENANCE, error="self test")
    async with watching(server) as watch:
        started = await set_maintenance(server, reason="operator")
        assert (await watch.event()).type == UPDATED, "the status is the same"
    assert started.health.error == "operator"
    health = await end(server)
    assert (health.status, health.error) == (MAINTENANCE, "self test")
    assert (await report(server, "a", HEALTHY)).status == HEALTHY


async def test_report_between_read_and_end_is_not_lost(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record a report after another process has read what was observed, and before it ends the maintenance."""
    await register(server, reported())
    await set_maintenance(server)
    registry = server.parts.registry
    read = maintenance.observed_health
    late = [Health(status=UNHEALTHY)]

    def read_then_report(registered: Service, stored: bytes | None) -> Health:
        health = read(registered, stored)
        while late:
            store = registry._store.writer
            write = store.write_check("a", late.pop().SerializeToString(), expected=registered.revision)
            tasks.append(asyncio.ensure_future(write))
        return health

    tasks: list[asyncio.Future[object]] = []
    monkeypatch.setattr(maintenance, "observed_health", read_then_report)
    assert (await end(server)).status == UNHEALTHY


# Probes.


async def test_probes_are_observed_and_decide_when_it_ends(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server:
        await register(server, service("a", agent.endpoint(), {"failureThreshold": 3}))
        await wait_for_status(server, "a", HEALTHY)
        async with watching(server) as watch:
            await set_maintenance(server)
            agent.response = BROKEN

            async def is_observed(status: HealthStatus.ValueType) -> bool:
                return (await observed(server)).status == status

            await eventually(lambda: is_observed(UNHEALTHY), "the failures are observed")
            agent.response = FINE
            await eventually(lambda: is_observed(HEALTHY), "the recovery is observed")
            agent.response = BROKEN
            await eventually(lambda: is_observed(UNHEALTHY), "the failures are observed again")
            assert (await get(server, "a")).health.status == MAINTENANCE
            assert (await health_of(server, "a")).health.error == ""
            health = await end(server)
            events = [await watch.event() for _ in range(2)]
        assert (health.status, health.error) == (UNHEALTHY, "HTTP 500")
        assert [event.type for event in events] == [HEALTH_CHANGED] * 2
        agent.response = FINE
        await wait_for_status(server, "a", HEALTHY)


async def test_reported_maintenance_is_kept_by_probes_during_an_operators(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server:
        await register(server, service("a", agent.endpoint()))
        await wait_for_status(server, "a", HEALTHY)
        await set_maintenance(server)
        await report(server, "a", MAINTENANCE)
        for _ in range(3):
            assert (await check(server)).status == MAINTENANCE
        seen = await observed(server)
        assert (seen.status, seen.HasField("response_time")) == (MAINTENANCE, True)
        assert (await end(server)).status == MAINTENANCE
        await report(server, "a", HEALTHY)
        assert (await get(server, "a")).health.status == HEALTHY


async def test_successful_probe_renews_the_lease_during_maintenance(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, interval_ms=3_600_000) as server, redis_client(redis) as client:
        await register(server, service("a", agent.endpoint()))
        await set_maintenance(server)
        await set_remaining_lease(client, "a", 30)
        before = (await health_of(server, "a")).lease_expires_at.seconds
        await check(server)
        assert (await health_of(server, "a")).lease_expires_at.seconds > before + 60
        assert (await observed(server)).status == HEALTHY, "the first result decides"


# Leases, other processes and lost data.


async def test_expired_lease_removes_the_service_with_its_maintenance(server: Server, redis: RedisProcess) -> None:
    await register(server, reported())
    await set_maintenance(server, reason="why")
    async with watching(server) as watch, redis_client(redis) as client:
        await set_remaining_lease(client, "a", 0.05)
        event = await watch.event()
        assert (event.type, event.service.maintenance.reason) == (UNREGISTERED, "why")
        assert event.reason == EventReason.EVENT_REASON_LEASE_EXPIRED
        again = await register(server, reported())
    assert (again.health.status, again.HasField("maintenance")) == (HEALTHY, False)


async def test_maintenance_holds_in_every_process(redis: RedisProcess) -> None:
    async with running(redis.url) as one, running(redis.url) as two:
        registered = await register(one, reported())
        await get(two, "a", min_revision=registered.revision)
        await set_maintenance(one)
        await report_unhealthy(two)
        await register_without_status(two)
        assert (await observed(one)).status == UNHEALTHY
        ended = await set_maintenance(two, enabled=False)
        assert (await get(one, "a", min_revision=ended.revision)).health.status == UNHEALTHY


async def test_maintenance_survives_the_loss_of_redis_data(redis: RedisProcess) -> None:
    async with running(redis.url) as server, redis_client(redis) as client:
        await register(server, reported("a", UNHEALTHY))
        await register(server, service("b", "http://b.test:8080", {"heartbeat": {}}))
        for name in "ab":
            await set_maintenance(server, name, reason="why")
        await client.flushall()

        async def is_gone() -> bool:
            return not await is_repaired()

        async def is_repaired() -> bool:
            return (await observed(server)).status != UNSPECIFIED

        await eventually(is_gone, "the process has noticed the loss")
        await eventually(is_repaired, "the services are restored")
        assert (await get(server, "a")).maintenance.reason == "why"
        assert ((await observed(server)).status, (await observed(server, "b")).status) == (UNKNOWN, HEALTHY)
        await report(server, "a", DEGRADED)
        assert (await end(server)).status == DEGRADED
        assert (await end(server, "b")).status == HEALTHY
