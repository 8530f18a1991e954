"""Maintenance against an agent that reports, restarts and dies, and a registry that loses its data."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import HealthStatus
from tests.support.redis_process import RedisProcess
from tests.support.server import ServerProcess, connected
from tests.support.watching import following

AGENT = Path(__file__).parent / "reporting_agent.py"
TIMEOUT = 60.0
REPORTS = 5
"""Reports after which a fault would have shown."""
MAINTENANCE = HealthStatus.HEALTH_STATUS_MAINTENANCE
DEGRADED = HealthStatus.HEALTH_STATUS_DEGRADED


class AgentProcess:
    """The agent as a process, whose acknowledged reports are counted."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reports = asyncio.Semaphore(0)
        self._reader = asyncio.create_task(self._read())

    async def reported(self) -> None:
        """Wait for some more reports."""
        while not self._reports.locked():
            await self._reports.acquire()
        async with asyncio.timeout(TIMEOUT):
            for _ in range(REPORTS):
                await self._reports.acquire()

    async def kill(self) -> None:
        """Kill the agent with SIGKILL."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reader

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for _ in self._process.stdout:
            self._reports.release()


@asynccontextmanager
async def reporting_agent(*targets: str) -> AsyncIterator[AgentProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(AGENT), *targets, cwd=AGENT.parents[2], stdout=asyncio.subprocess.PIPE
    )
    agent = AgentProcess(process)
    try:
        yield agent
    finally:
        await agent.kill()


@pytest.mark.slow
async def test_only_the_operator_ends_the_maintenance(redis: RedisProcess) -> None:
    request = pb.SetMaintenanceRequest(name="agent", enabled=True, reason="disk replacement")
    health = pb.GetServiceHealthRequest(name="agent")
    flags = (f"--redis.url={redis.url}", "--lease.sweep-interval-ms=500")
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(ServerProcess(*flags)) for _ in range(2)]
        _, stub = await stack.enter_async_context(connected(other.grpc_address))
        targets = one.grpc_address, other.grpc_address
        async with reporting_agent(*targets) as agent:
            await agent.reported()
            started = (await stub.SetMaintenance(request)).service
            subscriber = await stack.enter_async_context(following(stub))
            await subscriber.reached(started.revision)
            await agent.reported()
            assert subscriber.events == [], "reports send no event"

            await one.kill()
            await agent.reported()
            assert subscriber.state["agent"] == started
            await agent.kill()

        async with reporting_agent(*targets) as agent:
            await agent.reported()  # another instance has taken the name over
            newest = await stub.GetServiceHealth(health)
            assert (newest.health.status, newest.observed.status) == (MAINTENANCE, DEGRADED)
            assert subscriber.state["agent"].maintenance == started.maintenance

            async with Redis.from_url(redis.url) as client:
                await client.flushall()
            await agent.reported()
            await agent.reported()
            assert (await stub.GetServiceHealth(health)).observed.status == DEGRADED
            ended = (await stub.SetMaintenance(pb.SetMaintenanceRequest(name="agent"))).service
            assert (ended.health.status, ended.health.error) == (DEGRADED, "slow")

            await stub.SetMaintenance(request)
            await agent.kill()
        async with asyncio.timeout(TIMEOUT):
            while subscriber.state:
                await asyncio.sleep(0.05)
        last = subscriber.events[-1]
        assert (last.type, last.reason) == (
            EventType.EVENT_TYPE_SERVICE_UNREGISTERED,
            EventReason.EVENT_REASON_LEASE_EXPIRED,
        )
        assert last.service.maintenance.reason == "disk replacement"
