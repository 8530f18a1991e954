"""An owner whose services hang, fail and flap changes no status and ends no lease of another owner's services."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import HealthCheck, Service
from tests.grpc.calls import HEALTHY, UNHEALTHY, UNKNOWN, eventually
from tests.support.agents import Agents, Behaviour
from tests.support.endpoints import black_hole
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import Server, running

if TYPE_CHECKING:
    from registry_server.catalog import Change

EVIL, GOOD = "agent", "other"
"""Names of the two agents of the policy."""
SHORT_LEASE = Duration(seconds=5)
SLOW = HealthCheck(interval=Duration(seconds=300), timeout=Duration(seconds=300))
OFTEN = HealthCheck(interval=Duration(seconds=1))


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path)


@pytest.fixture
async def server(redis: RedisProcess, policy: Policy) -> AsyncIterator[Server]:
    checks: dict[str, Any] = {"concurrency": 50, "interval_ms": 1_000, "failure_threshold": 2}
    async with running(redis.url, security=policy.section, health_check=checks) as opened:
        yield opened


async def register(server: Server, policy: Policy, owner: str, services: Sequence[Service]) -> None:
    request = pb.BatchRegisterServicesRequest(services=services)
    answer = await server.stub.BatchRegisterServices(request, metadata=policy.metadata(owner))
    assert [result.status for result in answer.results if result.HasField("status")] == []


async def status_is(server: Server, name: str, status: int) -> None:
    async def holds() -> bool:
        record = server.parts.replica.records.get(name)
        assert record is not None, "its lease ended"
        return record.status == status

    await eventually(holds, f"{name} is {status}")


async def check(server: Server, policy: Policy, owner: str, name: str, seconds: float) -> pb.CheckServiceHealthResponse:
    request = pb.CheckServiceHealthRequest(name=name)
    return await server.stub.CheckServiceHealth(request, metadata=policy.metadata(owner), timeout=seconds)


async def test_hanging_services_of_an_owner_delay_no_probe_of_another(server: Server, policy: Policy) -> None:
    changes: list[Change] = []
    server.parts.replica.on_applied.append(changes.append)
    async with Agents() as agents:
        with black_hole() as port:
            slow = [
                small_service(f"fleet-{i}", endpoint=f"http://127.0.0.1:{port}", health_check=SLOW) for i in range(200)
            ]
            await register(server, policy, EVIL, slow)
            await asyncio.sleep(2)  # all first probes are due within a second
            good = [agents.service(f"other-{i}", ttl=SHORT_LEASE, health_check=OFTEN) for i in range(5)]
            await register(server, policy, GOOD, good)
            started = time.monotonic()
            await agents.wait_for_requests(since=started, times=8)  # longer than a lease
            asked = [asyncio.create_task(check(server, policy, EVIL, f"fleet-{i}", 60)) for i in range(100)]
            await asyncio.sleep(0.5)
            answer = await check(server, policy, GOOD, "other-0", 10)
            assert answer.health.status == HEALTHY
            assert not any(task.done() for task in asked)
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)
            agents.set_behaviour(Behaviour.ERROR, ["other-4"])
            await status_is(server, "other-4", UNHEALTHY)
            assert all(change.after is not None for change in changes), "no lease ended"
            after_first = [change.name for change in changes if change.before and change.before.status != UNKNOWN]
            assert after_first == ["other-4"]


async def test_calls_that_end_free_the_places_of_their_checks(server: Server, policy: Policy) -> None:
    with black_hole() as port:
        check_rarely = HealthCheck(interval=Duration(seconds=3600), timeout=Duration(seconds=300))
        slow = [
            small_service(f"fleet-{i}", endpoint=f"http://127.0.0.1:{port}", health_check=check_rarely)
            for i in range(100)
        ]
        await register(server, policy, EVIL, slow)
        for _ in range(3):
            asked = [check(server, policy, EVIL, service.name, 0.5) for service in slow]
            for outcome in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(outcome, grpc.aio.AioRpcError)
                assert outcome.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        monitor = server.parts.monitor

        async def free() -> bool:
            return not monitor._on_demand and not monitor._on_demand_slots._held

        await eventually(free, "all places are free")


async def test_owner_that_fails_its_services_freezes_only_its_own(server: Server, policy: Policy) -> None:
    async with Agents() as agents:
        evil = [agents.service(f"fleet-{i}", ttl=SHORT_LEASE) for i in range(30)]
        good = [agents.service(f"other-{i}", ttl=Duration(seconds=60)) for i in range(3)]
        await register(server, policy, EVIL, evil)
        await register(server, policy, GOOD, good)
        for name in agents.names:
            await status_is(server, name, HEALTHY)
        agents.set_behaviour(Behaviour.ERROR, [service.name for service in evil])

        async def frozen() -> bool:
            return server.parts.monitor.protected_owners == 1

        await eventually(frozen, "the statuses of one owner are frozen")
        agents.set_behaviour(Behaviour.ERROR, ["other-0", "other-1"])
        await status_is(server, "other-0", UNHEALTHY)
        await status_is(server, "other-1", UNHEALTHY)
        await status_is(server, "fleet-0", HEALTHY)
        assert not server.parts.monitor.self_preservation_active
