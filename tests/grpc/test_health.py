import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Health, HealthStatus, ServiceFilter
from tests.grpc.calls import (
    DEGRADED,
    HEALTH_CHANGED,
    HEALTHY,
    MAINTENANCE,
    UNHEALTHY,
    UNKNOWN,
    UNSPECIFIED,
    failure,
    find_names,
    get,
    health_of,
    kind_and_name,
    redis_client,
    register,
    report,
    set_remaining_lease,
    unregister,
    update,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.support.server import Server, running

STATUSES = [HEALTHY, UNHEALTHY, DEGRADED, UNKNOWN, MAINTENANCE]


def nanoseconds(time: Timestamp) -> int:
    return time.ToNanoseconds()


# Reports.


@pytest.mark.parametrize("before", STATUSES)
async def test_report_of_another_status_is_a_health_change(server: Server, before: HealthStatus.ValueType) -> None:
    registered = await register(server, small_service("a", health=Health(status=before)))
    for status in (status for status in STATUSES if status != before):
        async with watching(server) as watch:
            health = await report(server, "a", status, error="why", details={"load": 0.5})
            event = await watch.event()
            service = await get(server, "a")
            assert health == service.health
            assert (health.status, health.error, health.details["load"]) == (status, "why", 0.5)
            assert health.last_check == health.status_changed_at == service.updated_at
            assert (event.type, event.previous_health) == (HEALTH_CHANGED, before)
            assert (event.service, event.revision) == (service, service.revision)
            assert event.reason == EventReason.EVENT_REASON_HEALTH_REPORT
            assert (await health_of(server, "a")).health == health
            assert service.registered_at == registered.registered_at
            assert await find_names(server, ServiceFilter(health=[status])) == ["a"]
            assert await find_names(server, ServiceFilter(health=[before])) == []
            await report(server, "a", before)


async def test_report_of_the_same_status_has_no_revision_and_no_event(server: Server) -> None:
    await register(server, small_service("a"))
    first = await report(server, "a", DEGRADED, error="slow", details={"p99": 1.0})
    service = await get(server, "a")
    async with watching(server) as watch:
        second = await report(server, "a", DEGRADED, error="slower", details={"p99": 2.0})
        assert (await health_of(server, "a")).health == second
        await register(server, small_service("next"))
        assert kind_and_name(await watch.event()) == ("REGISTERED", "next"), "no event"

    assert await get(server, "a") == service, "no revision"
    assert (second.status, second.error, second.details["p99"]) == (DEGRADED, "slower", 2.0)
    assert second.status_changed_at == first.status_changed_at
    assert nanoseconds(second.last_check) >= nanoseconds(first.last_check)

    third = await report(server, "a", DEGRADED)
    assert not third.HasField("details")
    assert not third.error
    assert (await health_of(server, "a")).health == third, "fields that a report omits are cleared"


async def test_status_changed_at_changes_only_with_the_status(server: Server) -> None:
    registered = await register(server, small_service("a"))
    changed_at = nanoseconds(registered.health.status_changed_at)
    before: HealthStatus.ValueType = UNKNOWN
    for status in [UNKNOWN, HEALTHY, HEALTHY, HEALTHY, UNHEALTHY, UNHEALTHY, HEALTHY]:
        await asyncio.sleep(0.002)  # times have a resolution of milliseconds
        health = await report(server, "a", status)
        assert (nanoseconds(health.status_changed_at) > changed_at) == (status != before)
        assert (await health_of(server, "a")).health == health
        changed_at, before = nanoseconds(health.status_changed_at), status


async def test_newest_report_is_shown_despite_a_future_registered_time(server: Server) -> None:
    sent = small_service("a", health=Health(status=HEALTHY))
    sent.health.last_check.FromSeconds(4_000_000_000)  # an agent whose clock is far ahead
    await register(server, sent)
    reported = await report(server, "a", HEALTHY, details={"load": 0.5})
    assert (await health_of(server, "a")).health == reported


async def test_report_is_visible_on_every_server(server: Server, redis: RedisProcess) -> None:
    await register(server, small_service("a"))
    await report(server, "a", HEALTHY)
    async with running(redis.url) as other:
        newest = await report(other, "a", HEALTHY, details={"by": "other"})
        assert (await health_of(server, "a")).health == (await health_of(other, "a")).health == newest


async def test_details_are_stored_unchanged(server: Server, redis: RedisProcess) -> None:
    details: dict[str, Any] = {
        "text": "ünï  機 \U0001f916 \n\t\"'\\ \x00",
        "numbers": [0, -0.0, 1.5, -1e300, 5e-324, 2**53],
        "nothing": None,
        "yes": True,
        "nested": {"": {"deep": [[[{"er": []}]]]}},
        "empty": {},
    }
    await register(server, small_service("a"))
    transition = await report(server, "a", UNHEALTHY, details=details, error="größer als 機")
    newer = await report(server, "a", UNHEALTHY, details={**details, "more": 1}, error="…")
    assert newer.details["text"] == details["text"]
    assert (await health_of(server, "a")).health == newer
    async with running(redis.url) as other:  # reads from Redis
        assert (await get(other, "a")).health == transition
        assert (await health_of(other, "a")).health == newer


async def test_bad_fields_are_reported_and_nothing_changes(server: Server) -> None:
    before = await register(server, small_service("a"))
    refused = await failure(report(server, "a", UNSPECIFIED))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["status"])

    request = pb.ReportServiceHealthRequest(name="-", error="e" * 1025)
    request.status = 99  # type: ignore[assignment]
    request.details["much"] = "d" * 4096
    refused = await failure(server.stub.ReportServiceHealth(request))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(refused.fields) == ["details", "error", "name", "status"]
    request = pb.ReportServiceHealthRequest(name="a", status=HEALTHY)
    request.details["load"] = float("nan")
    assert (await failure(server.stub.ReportServiceHealth(request))).fields == ["details"]
    assert await get(server, "a") == before


async def test_report_at_the_size_limits_is_accepted(server: Server) -> None:
    await register(server, small_service("a"))
    request = pb.ReportServiceHealthRequest(name="a", status=HEALTHY, error="é" * 1024)
    request.details["much"] = "d" * 4000
    request.details["much"] = "d" * (4000 + 4096 - request.details.ByteSize())
    assert request.details.ByteSize() == 4096
    health = (await server.stub.ReportServiceHealth(request)).health
    assert (health.details, health.error) == (request.details, request.error)


async def test_report_for_an_unknown_service_is_not_found(server: Server) -> None:
    refused = await failure(report(server, "missing", HEALTHY))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


async def test_report_does_not_renew_the_lease(server: Server, redis: RedisProcess) -> None:
    await register(server, small_service("a"))
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "a", 100)
        before = (await health_of(server, "a")).lease_expires_at
        await report(server, "a", HEALTHY)
        await report(server, "a", HEALTHY)
        assert (await health_of(server, "a")).lease_expires_at == before
        assert 90 < await client.ttl("ossa:services:a") <= 100


async def test_checks_before_unregistering_are_not_shown_afterwards(server: Server) -> None:
    await register(server, small_service("a"))
    await report(server, "a", UNKNOWN, details={"of": "before"})
    await unregister(server, "a")
    again = await register(server, small_service("a"))
    assert not again.health.HasField("details")
    assert (await health_of(server, "a")).health == again.health


async def test_checks_of_an_earlier_period_of_a_status_are_not_shown(server: Server) -> None:
    await register(server, small_service("a"))
    await report(server, "a", HEALTHY)
    await report(server, "a", HEALTHY, details={"period": 1})
    await report(server, "a", UNHEALTHY)
    again = await report(server, "a", HEALTHY)
    assert (await health_of(server, "a")).health == again


async def test_concurrent_reports_emit_each_health_change_once(server: Server) -> None:
    await register(server, small_service("a"))
    async with watching(server) as watch:
        await asyncio.gather(*(report(server, "a", STATUSES[i % 5]) for i in range(50)))
        service = await get(server, "a")
        events = await watch.until(service.revision)

    status: HealthStatus.ValueType = UNKNOWN
    for event in events:
        assert (event.type, event.previous_health) == (HEALTH_CHANGED, status)
        assert event.service.health.status != status
        status = event.service.health.status
    assert service.health.status == status


# Reads.


async def test_health_is_returned_with_the_end_of_the_lease(server: Server) -> None:
    service = await register(server, example_service())
    answer = await health_of(server, service.name)
    assert answer.health == service.health
    assert 299 <= answer.lease_expires_at.seconds - service.registered_at.seconds <= 301

    refused = await failure(health_of(server, "missing"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")
    refused = await failure(health_of(server, ""))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name"])


async def test_check_on_a_server_without_health_checks_is_unimplemented(redis: RedisProcess) -> None:
    async with running(redis.url, health_check={"enabled": False}) as server:
        await register(server, small_service("a"))
        refused = await failure(server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name="a")))
        assert refused.code is grpc.StatusCode.UNIMPLEMENTED
        refused = await failure(server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name="missing")))
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")
        refused = await failure(server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name="?")))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name"])


# The registry's own health.


async def test_registry_is_degraded_while_a_service_is_unhealthy(server: Server) -> None:
    async def status() -> HealthStatus.ValueType:
        return (await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).status

    assert await status() == HEALTHY, "an empty registry is healthy"
    for i, service_status in enumerate(STATUSES):
        await register(server, small_service(f"s{i}", health=Health(status=service_status)))
        assert await status() == (DEGRADED if i >= STATUSES.index(UNHEALTHY) else HEALTHY)
    await report(server, f"s{STATUSES.index(UNHEALTHY)}", MAINTENANCE)
    assert await status() == HEALTHY
    await update(server, small_service("s0", health=Health(status=UNHEALTHY)), "health.status")
    assert await status() == DEGRADED
    await unregister(server, "s0")
    assert await status() == HEALTHY


async def test_registry_health_contains_stats_and_revision(server: Server) -> None:
    await register(server, example_service())
    last = await register(server, small_service("b"))
    health = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
    assert health.stats == (await server.stub.GetStats(pb.GetStatsRequest())).stats
    assert health.stats.total_services == 2
    assert health.revision == last.revision
    assert health.store_connected
    assert nanoseconds(health.checked_at) >= nanoseconds(last.updated_at)
    assert health.HasField("replication_lag")
    assert health.replication_lag.ToNanoseconds() == 0
