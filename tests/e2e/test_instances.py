"""Processes of agents that share a name and an endpoint: real registries, real kills, plain gRPC."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import Event, EventType
from ossa.registry.v1.service_pb2 import HealthStatus
from tests.grpc.calls import TIMEOUT, Watch, open_watch
from tests.support.endpoints import Agent, agents
from tests.support.redis_process import RedisProcess
from tests.support.server import ServerProcess, connected

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TTL_SECONDS = 5

# Sends heartbeats and prints their result; reads "drain" and "leave" from standard input.
AGENT = """
import sys, threading, time
import grpc
from google.protobuf.duration_pb2 import Duration
from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import Service

target, endpoint, instance, ttl = sys.argv[1:]
stub = RegistryServiceStub(grpc.insecure_channel(target))
lease = pb.Lease(name="agent", instance_id=instance)


def execute_commands():
    for line in sys.stdin:
        if line == "drain\\n":
            lease.draining = True
        else:
            try:
                stub.UnregisterService(pb.UnregisterServiceRequest(name="agent", instance_id=instance))
                print("left", flush=True)
            except grpc.RpcError as error:
                print(error.code().name, flush=True)


service = Service(name="agent", endpoint=endpoint, version="1.0.0", instance_id=instance)
service.ttl.CopyFrom(Duration(seconds=int(ttl)))
stub.RegisterService(pb.RegisterServiceRequest(service=service))
print("registered", flush=True)
threading.Thread(target=execute_commands, daemon=True).start()
while True:
    answer = stub.Heartbeat(pb.HeartbeatRequest(leases=[lease]))
    done = "draining" if lease.draining else "renewed"
    print("superseded" if answer.superseded_names else done if answer.renewed_count else "unknown", flush=True)
    time.sleep(0.2)
"""


class AgentProcess:
    """A process that runs ``AGENT``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def prints(self, expected: str) -> None:
        """Read its output up to a line."""
        assert self._process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            while line := await self._process.stdout.readline():
                if line.decode().strip() == expected:
                    return
        raise AssertionError(f"the agent ended without printing {expected!r}")

    async def execute(self, command: str, expected: str) -> None:
        """Send a command, and wait for its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        await self._process.stdin.drain()
        await self.prints(expected)

    async def kill(self) -> None:
        """End it as ``kill -9`` does."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.communicate()


@asynccontextmanager
async def agent_process(server: ServerProcess, endpoint: Agent, instance: str) -> AsyncIterator[AgentProcess]:
    """Start an agent and wait until it has registered."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", AGENT, server.grpc_address, endpoint.endpoint(), instance, str(TTL_SECONDS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    started = AgentProcess(process)
    try:
        await started.prints("registered")
        yield started
    finally:
        await started.kill()


@pytest.fixture
async def registries(redis: RedisProcess) -> AsyncIterator[list[ServerProcess]]:
    """Two registry processes on one Redis, which probe every second."""
    flags = (f"--redis.url={redis.url}", "--health-check.enabled=true", "--health-check.interval-ms=1000")
    async with ServerProcess(*flags) as first, ServerProcess(*flags) as second:
        yield [first, second]


@pytest.fixture
async def endpoint() -> AsyncIterator[Agent]:
    """An endpoint that always answers, such as that of a load balancer before both processes."""
    async with agents(1) as [made]:
        yield made


@asynccontextmanager
async def observing(registry: ServerProcess) -> "AsyncIterator[tuple[RegistryServiceAsyncStub, Watch]]":
    async with connected(registry.grpc_address) as (_, stub), open_watch(stub, include_snapshot=True) as watch:
        await watch.snapshot()
        yield stub, watch


async def until_available(watch: Watch, instance: str) -> list[Event]:
    """Read events until an instance is available, and return them."""
    events: list[Event] = []
    while not events or (events[-1].service.instance_id, available(events[-1])) != (instance, True):
        events += (await watch.message()).events
    return events


def available(event: Event) -> bool:
    service = event.service
    return service.health.status == HealthStatus.HEALTH_STATUS_HEALTHY and not service.draining


async def events_of_a_lease(stub: "RegistryServiceAsyncStub", watch: Watch) -> list[Event]:
    """Return the events of more than one lease."""
    await asyncio.sleep(1.5 * TTL_SECONDS)
    health = await stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
    return await watch.until(health.revision) if watch.messages[-1].revision < health.revision else []


@pytest.mark.parametrize("end", ["killed", "leaves"])
async def test_successor_is_available_at_once_and_stays_so(
    registries: list[ServerProcess], endpoint: Agent, end: str
) -> None:
    first, second = registries
    async with observing(second) as (stub, watch), agent_process(first, endpoint, "old") as old:
        await until_available(watch, "old")
        await old.execute("drain", "draining")
        [drained] = (await watch.message()).events
        assert (drained.service.draining, drained.service.health.status) == (True, HealthStatus.HEALTH_STATUS_HEALTHY)

        async with agent_process(second, endpoint, "new") as new:
            [taken] = (await watch.message()).events
            assert (taken.type, taken.service.instance_id) == (EventType.EVENT_TYPE_SERVICE_UPDATED, "new")
            assert available(taken), "without a gap"
            if end == "killed":
                await old.kill()
            else:
                await old.prints("superseded")
                await old.execute("leave", "ABORTED")
            assert await events_of_a_lease(stub, watch) == []
            await new.prints("renewed")
            found = (await stub.GetService(pb.GetServiceRequest(name="agent"))).service
            assert found == taken.service
            await new.execute("leave", "left")
        [left] = (await watch.message()).events
        assert left.type == EventType.EVENT_TYPE_SERVICE_UNREGISTERED
