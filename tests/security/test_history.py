"""No agent pushes the changes of others out of the history from which watches resume."""

from collections.abc import Awaitable, Callable

import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import HealthStatus, Service
from tests.security.test_limits import reason_and_delay
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import Server, running
from tests.support.waiting import until

KIB = 1 << 10
LOW_BUDGET = {"change_bytes_per_second": 2 * KIB}
"""With bursts of 512 KiB."""


def large_service(name: str, version: int) -> Service:
    """Return a service of about 16 KiB."""
    capabilities = [{"name": f"c{i}", "description": "d" * 4_000} for i in range(4)]
    return small_service(name, version=f"{version}.0.0", capabilities=capabilities)


async def repeat_until_refused(change: Callable[[int], Awaitable[object]]) -> tuple[int, float]:
    """Make changes until one is refused; return the number of changes before it and the time to wait."""
    made = 0

    async def repeat() -> None:
        nonlocal made
        while made < 200:
            await change(made)
            made += 1

    with pytest.raises(grpc.aio.AioRpcError, match=r"limits\.change_bytes_per_second") as refused:
        await repeat()
    reason, delay = reason_and_delay(refused.value)
    assert (refused.value.code(), reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    return made, delay


async def changes_until_refused(server: Server, policy: Policy, role: str, name: str) -> tuple[int, float]:
    async def change(version: int) -> None:
        request = pb.RegisterServiceRequest(service=large_service(name, version))
        await server.stub.RegisterService(request, metadata=policy.metadata(role))

    return await repeat_until_refused(change)


async def test_large_updates_of_one_agent_are_limited(redis: RedisProcess, policy: Policy) -> None:
    async with (
        running(redis.url, security=policy.section, limits=LOW_BUDGET) as server,
        running(redis.url, security=policy.section, limits=LOW_BUDGET) as other,
    ):
        made, delay = await changes_until_refused(server, policy, "agent", "fleet-a")
        assert 512 * KIB / (33 * KIB) - 1 < made < 512 * KIB / (32 * KIB) + 2
        assert 0 < delay < 60

        # The budget is that of the whole registry, and of this owner.
        revision = server.parts.replica.revision
        await until(lambda: other.parts.replica.revision == revision)
        assert (await changes_until_refused(other, policy, "agent", "fleet-b"))[0] <= 1
        assert (await changes_until_refused(server, policy, "other", "other-a"))[0] == made
        # Neither heartbeats nor removals are refused.
        metadata = policy.metadata("agent")
        await server.stub.Heartbeat(pb.HeartbeatRequest(names=["fleet-a"]), metadata=metadata)
        await server.stub.UnregisterService(pb.UnregisterServiceRequest(name="fleet-a"), metadata=metadata)


async def test_reports_of_flapping_statuses_are_limited(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section, limits=LOW_BUDGET) as server:
        metadata = policy.metadata("agent")
        await server.stub.RegisterService(
            pb.RegisterServiceRequest(service=large_service("fleet-a", 1)), metadata=metadata
        )
        statuses = [HealthStatus.HEALTH_STATUS_UNHEALTHY, HealthStatus.HEALTH_STATUS_HEALTHY]

        async def report(number: int) -> None:
            request = pb.ReportServiceHealthRequest(name="fleet-a", status=statuses[number % 2])
            await server.stub.ReportServiceHealth(request, metadata=metadata)

        assert (await repeat_until_refused(report))[0] > 3


async def test_services_without_an_owner_and_operators_are_not_limited(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, limits=LOW_BUDGET) as server:
        for version in range(30):
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=large_service("a", version)))
    async with running(redis.url, security=policy.section, limits=LOW_BUDGET) as server:
        for version in range(30):
            request = pb.RegisterServiceRequest(service=large_service("operators", version))
            await server.stub.RegisterService(request, metadata=policy.metadata("operator"))


@pytest.mark.slow
async def test_quota_of_services_can_be_registered_at_once(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section) as server:
        for start in range(0, 10_000, 500):
            services = [
                small_service(f"fleet-{i}", metadata={"description": "d" * 500}) for i in range(start, start + 500)
            ]
            answer = await server.stub.BatchRegisterServices(
                pb.BatchRegisterServicesRequest(services=services), metadata=policy.metadata("agent"), timeout=60
            )
            assert all(result.HasField("service") for result in answer.results)
        history = server.parts.replica.history
        assert history.oldest is not None
        assert history.oldest.revision == 1
