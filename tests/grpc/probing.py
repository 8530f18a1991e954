"""Helpers of the tests of health checks through gRPC."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from google.protobuf.json_format import ParseDict

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import Event
from ossa.registry.v1.service_pb2 import Health, HealthStatus, Service
from tests.grpc.calls import (
    DEGRADED,
    HEALTHY,
    MAINTENANCE,
    UNHEALTHY,
    UNKNOWN,
    Watch,
    discover,
    eventually,
    get,
    health_of,
    register,
    unregister,
)
from tests.support.endpoints import BROKEN, FINE, Agent, answer
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running

ON_DEMAND = {"interval_ms": 3_600_000, "timeout_ms": 10_000}
"""After their first probe, services are probed only on demand; the timeout is long enough for a busy machine."""
OFTEN = {"interval_ms": 100, "timeout_ms": 100}
"""For tests that tolerate failed probes on a busy machine."""
TIMED_OUT = "no answer within 200 ms"


@asynccontextmanager
async def probing_with(redis: RedisProcess, **health_check: Any) -> AsyncIterator[Server]:
    """Run a server with health checks, to which all services are already assigned."""
    async with running(redis.url, health_check=health_check) as served:

        async def is_assigned() -> bool:
            return served.parts.monitor._membership.owns("any")

        await eventually(is_assigned, "services are assigned")
        yield served


# Calls.


def service(name: str, endpoint: str, check: dict[str, Any] | None = None, **fields: Any) -> Service:
    """Return a service; ``check`` is its health check as JSON."""
    result = small_service(name, endpoint=endpoint, **fields)
    if check is not None:
        ParseDict(check, result.health_check)
    return result


async def check(server: Server, name: str = "a") -> Health:
    return (await server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name=name))).health


async def wait_for_first_probe(server: Server, *names: str) -> None:
    """Wait for the first scheduled probe of each service."""

    async def probed(name: str) -> bool:
        return (await health_of(server, name)).health.HasField("last_check")

    for name in names:
        await eventually(partial(probed, name), f"{name} is probed")


async def register_and_wait_for_probe(server: Server, sent: Service) -> Service:
    """Register a service, wait for its first probe and return the service."""
    await register(server, sent)
    await wait_for_first_probe(server, sent.name)
    return await get(server, sent.name)


async def wait_for_status(server: Server, name: str, status: HealthStatus.ValueType) -> None:
    async def holds() -> bool:
        return (await get(server, name)).health.status == status

    await eventually(holds, f"{name} is {HealthStatus.Name(status)}")


async def is_removed(server: Server, name: str) -> bool:
    return name not in [each.name for each in (await discover(server)).services]


async def lease_end_ns(server: Server, name: str) -> int:
    return (await health_of(server, name)).lease_expires_at.ToNanoseconds()


async def read_events(server: Server, watch: Watch) -> list[Event]:
    """Return the events of a watch so far, using a change of another service as end marker."""
    last = await register(server, small_service("sentinel", health_check={"none": {}}))
    events = await watch.until(last.revision)
    assert events.pop().service.name == "sentinel"
    await unregister(server, "sentinel")
    await watch.event()
    return events


# Consecutive checks.

ANSWERS = {"o": FINE, "x": BROKEN, "d": answer(b'{"status":"degraded"}')}
STATUSES = {"H": HEALTHY, "U": UNHEALTHY, "D": DEGRADED, "?": UNKNOWN, "M": MAINTENANCE}


async def check_repeatedly(server: Server, agent: Agent, answers: str) -> str:
    """Check once for each answer and return the resulting statuses."""
    statuses = ""
    for each in answers:
        agent.response = ANSWERS[each]
        requests = len(agent.requests)
        status = (await check(server)).status
        assert len(agent.requests) == requests + 1
        assert (await health_of(server, "a")).health.status == status
        statuses += next(letter for letter, value in STATUSES.items() if value == status)
    return statuses
