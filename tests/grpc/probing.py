"""What the tests of probing through the front door share."""

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
"""Nothing is probed after the first time but what a test asks for, and however busy the machine is, in time."""
OFTEN = {"interval_ms": 100, "timeout_ms": 100}
"""For tests that a probe which the machine was too busy for does not hurt."""
HANGS = "no answer within 200 ms"


@asynccontextmanager
async def probing_with(redis: RedisProcess, **health_check: Any) -> AsyncIterator[Server]:
    """A server that probes, and knows already that all services are its own."""
    async with running(redis.url, health_check=health_check) as served:

        async def shared_out() -> bool:
            return served.parts.monitor._membership.owns("any")

        await eventually(shared_out, "services are shared out")
        yield served


# Calls.


def service(name: str, endpoint: str, check: dict[str, Any] | None = None, **fields: Any) -> Service:
    """A service with a health check given as JSON."""
    made = small_service(name, endpoint=endpoint, **fields)
    if check is not None:
        ParseDict(check, made.health_check)
    return made


async def check(server: Server, name: str = "a") -> Health:
    return (await server.stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name=name))).health


async def settled(server: Server, *names: str) -> None:
    """Waits for the first probe that each service gets by itself."""

    async def probed(name: str) -> bool:
        return (await health_of(server, name)).health.HasField("last_check")

    for name in names:
        await eventually(partial(probed, name), f"{name} is probed")


async def registered_and_settled(server: Server, sent: Service) -> Service:
    """Registers a service and waits for its first probe; gives it as it is then."""
    await register(server, sent)
    await settled(server, sent.name)
    return await get(server, sent.name)


async def has_status(server: Server, name: str, status: HealthStatus.ValueType) -> None:
    async def holds() -> bool:
        return (await get(server, name)).health.status == status

    await eventually(holds, f"{name} is {HealthStatus.Name(status)}")


async def gone(server: Server, name: str) -> bool:
    return name not in [each.name for each in (await discover(server)).services]


async def lease_of(server: Server, name: str) -> int:
    return (await health_of(server, name)).lease_expires_at.ToNanoseconds()


async def events_until(server: Server, watch: Watch) -> list[Event]:
    """What a watch was told of until now: a change of another service ends it."""
    last = await register(server, small_service("sentinel", health_check={"none": {}}))
    events = await watch.until(last.revision)
    assert events.pop().service.name == "sentinel"
    await unregister(server, "sentinel")
    await watch.event()
    return events


# Checks in a row.

ANSWERS = {"o": FINE, "x": BROKEN, "d": answer(b'{"status":"degraded"}')}
STATUSES = {"H": HEALTHY, "U": UNHEALTHY, "D": DEGRADED, "?": UNKNOWN, "M": MAINTENANCE}


async def checks(server: Server, agent: Agent, answers: str) -> str:
    """Checks as often as there are answers; gives the statuses that came of them."""
    told = ""
    for each in answers:
        agent.response = ANSWERS[each]
        came = len(agent.requests)
        status = (await check(server)).status
        assert len(agent.requests) == came + 1
        assert (await health_of(server, "a")).health.status == status
        told += next(letter for letter, value in STATUSES.items() if value == status)
    return told
