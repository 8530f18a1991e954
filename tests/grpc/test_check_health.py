"""CheckServiceHealth: results, errors, and starting and stopping of health checks."""

import asyncio
from functools import partial

import grpc
import grpc.aio
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.grpc.calls import HEALTHY, TIMEOUT, eventually, failure, get, health_of, register, unregister
from tests.grpc.probing import OFTEN, check, check_repeatedly, probing_with, register_and_wait_for_probe, service
from tests.support.endpoints import BROKEN, Agent, agents
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running

pytestmark = pytest.mark.usefixtures("no_pause_detection")


async def refused_check(server: Server, name: str = "a") -> tuple[grpc.StatusCode, str]:
    refused = await failure(check(server, name))
    return refused.code, refused.reason


NOT_FOUND = grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND"
DISABLED = grpc.StatusCode.UNIMPLEMENTED, "PROBING_DISABLED"


async def test_check_of_an_unknown_service_is_not_found(probing: Server) -> None:
    assert await refused_check(probing, "missing") == NOT_FOUND
    refused = await failure(check(probing, "?"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name"])


async def test_health_checks_can_be_disabled_started_and_stopped(redis: RedisProcess, agent: Agent) -> None:
    async with running(redis.url, health_check={**OFTEN, "enabled": False}) as server:
        await register(server, service("a", agent.endpoint()))
        registry = server.parts.registry
        assert await refused_check(server) == DISABLED
        assert await refused_check(server, "missing") == NOT_FOUND
        assert agent.connections == 0

        for _ in range(2):
            await registry.start_health_monitoring()
            await registry.start_health_monitoring()
            assert (await check(server)).status == HEALTHY
            requests = len(agent.requests)
            await agent.wait_for_requests(requests + 3)

            await registry.stop_health_monitoring()
            await registry.stop_health_monitoring()
            assert await refused_check(server) == DISABLED
        assert (await health_of(server, "a")).health.status == HEALTHY


async def test_check_in_flight_when_health_checks_stop_is_refused(probing: Server, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    agent.open.clear()
    checking = asyncio.create_task(refused_check(probing))
    await agent.wait_for_requests(2)
    await probing.parts.registry.stop_health_monitoring()
    assert await checking == DISABLED


@pytest.mark.own_redis
async def test_check_while_health_checks_stop_is_refused(probing: Server, redis: RedisProcess, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    redis.pause()  # stopping takes a while, because the member list is not available
    stopping = asyncio.create_task(probing.parts.registry.stop_health_monitoring())
    await asyncio.sleep(0)
    try:
        assert await refused_check(probing) == DISABLED
    finally:
        redis.resume()
        await stopping


async def test_health_checks_restarted_while_they_stop_keep_running(redis: RedisProcess, agent: Agent) -> None:
    async with probing_with(redis, **OFTEN) as server:
        await register(server, service("a", agent.endpoint()))
        await agent.wait_for_requests(1)
        registry = server.parts.registry
        stopping = asyncio.create_task(registry.stop_health_monitoring())
        await asyncio.sleep(0)
        await registry.start_health_monitoring()
        await stopping

        assert (await check(server)).status == HEALTHY
        requests = len(agent.requests)
        await agent.wait_for_requests(requests + 3)


async def test_concurrent_checks_of_a_service_share_one_probe(probing: Server, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    agent.open.clear()
    checking = [asyncio.create_task(probing.parts.registry.check_health("a")) for _ in range(50)]
    await agent.wait_for_requests(2)
    checking += [asyncio.create_task(probing.parts.registry.check_health("a")) for _ in range(50)]
    await asyncio.sleep(0)
    agent.open.set()
    answers = await asyncio.gather(*checking)
    assert agent.connections == 2
    assert all(each == answers[0] for each in answers)
    assert (await check(probing)).last_check.ToNanoseconds() >= answers[0].last_check.ToNanoseconds()
    assert agent.connections == 3


async def test_cancelled_check_does_not_affect_another(probing: Server, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    agent.open.clear()
    leaving, staying = asyncio.create_task(check(probing)), asyncio.create_task(check(probing))
    await agent.wait_for_requests(2)
    leaving.cancel()
    agent.open.set()
    assert (await staying).status == HEALTHY


async def test_check_of_a_service_removed_meanwhile_is_not_found(probing: Server, agent: Agent) -> None:
    await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    agent.open.clear()
    checking = asyncio.create_task(refused_check(probing))
    await agent.wait_for_requests(2)
    await unregister(probing, "a")
    agent.open.set()
    assert await checking == NOT_FOUND


async def test_check_of_a_moved_service_probes_its_new_endpoint(probing: Server) -> None:
    async with agents(2) as [old, new]:
        old.response = BROKEN
        await register_and_wait_for_probe(probing, service("a", old.endpoint(), {"timeout": "60s"}))
        old.open.clear()
        before = asyncio.create_task(check(probing))
        await old.wait_for_requests(2)
        await register(probing, service("a", new.endpoint(), {"timeout": "60s"}))
        async with asyncio.timeout(TIMEOUT):
            assert (await check(probing)).status == HEALTHY
        old.open.set()
        assert (await before).error == "", "the result of the old endpoint is dropped"


async def test_concurrent_checks_of_many_services_all_succeed(probing: Server, agent: Agent) -> None:
    names = [f"s{i}" for i in range(150)]
    for name in names:
        await register(probing, service(name, agent.endpoint()))
    healths = await asyncio.gather(*(check(probing, name) for name in names))
    assert {health.status for health in healths} == {HEALTHY}


@pytest.mark.own_redis
async def test_check_without_the_store_succeeds_and_changes_no_status(
    probing: Server, redis: RedisProcess, agent: Agent
) -> None:
    known = await register_and_wait_for_probe(probing, service("a", agent.endpoint()))
    await check_repeatedly(probing, agent, "xx")

    async def connected(expected: bool) -> bool:  # noqa: FBT001
        health = await probing.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        return health.store_connected is expected

    redis.kill()
    await eventually(partial(connected, False), "the store is disconnected")  # noqa: FBT003
    for _ in range(4):
        health = await check(probing)
        assert (health.status, health.error) == (HEALTHY, "HTTP 500")
    assert await get(probing, "a") == known

    await redis.restart()
    await eventually(partial(connected, True), "the store is connected")  # noqa: FBT003
    assert await get(probing, "a") == known
    assert await check_repeatedly(probing, agent, "xxx") == "HHU", "failures before and during the outage do not count"
