"""Networks that may not be reached, by whatever way an endpoint leads there."""

from collections.abc import Sequence

import grpc
import grpc.aio
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.grpc.calls import UNHEALTHY, discover, failure, failure_in, get, health_of, register, update
from tests.grpc.probing import ON_DEMAND, check, probing_with, service
from tests.support.endpoints import Agent
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running

pytestmark = pytest.mark.usefixtures("never_stands_still")


DENIED = [
    "http://169.254.169.254/latest/meta-data",
    "http://169.254.0.7:8080",
    "https://[fe80::1]:8443",
    "http://[::ffff:169.254.169.254]",
    "grpc://[fd00:ec2::254]:443",
    "tcp://100.100.100.200:80",
    "http://0.0.0.0:80",
    "ws://[::]:80",
]


@pytest.mark.parametrize("endpoint", DENIED)
async def test_a_literal_endpoint_that_may_not_be_reached_is_refused(server: Server, endpoint: str) -> None:
    refused = await failure(register(server, small_service("a", endpoint=endpoint)))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["service.endpoint"])
    assert "is not allowed by the settings of this registry" in refused.message

    known = await register(server, small_service("a"))
    refused = await failure(update(server, small_service("a", endpoint=endpoint), "endpoint"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["service.endpoint"])
    assert await get(server, "a") == known


async def test_whatever_else_is_wrong_is_told_beside_a_denied_endpoint(server: Server) -> None:
    bad = small_service("-", version="", endpoint=DENIED[0], metadata={"tags": [""]})
    refused = await failure(register(server, bad))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {"service.name", "service.version", "service.endpoint"} < set(refused.fields)
    assert len(set(refused.fields)) == len(refused.fields)

    await register(server, small_service("a"))
    bad = small_service("a", version="", endpoint=DENIED[0])
    refused = await failure(update(server, bad, "version", "endpoint"))
    assert sorted(refused.fields) == ["service.endpoint", "service.version"]


async def test_in_a_batch_a_denied_endpoint_is_named_by_its_place_and_costs_the_others_nothing(server: Server) -> None:
    batch = [small_service("a"), small_service("b", endpoint=DENIED[0], version=""), small_service("c")]
    results = (await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=batch))).results
    assert [result.service.name for result in results] == ["a", "", "c"]
    refused = failure_in(results[1].status)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(refused.fields) == ["services[1].endpoint", "services[1].version"]
    assert [each.name for each in (await discover(server)).services] == ["a", "c"]


@pytest.mark.parametrize(
    ("networks", "taken", "refused"),
    [
        pytest.param(
            {"denied_networks": "10.0.0.0/8, 192.168.0.0/16"},
            ["http://127.0.0.1:80", "http://11.0.0.1", "http://169.254.169.254"],
            ["http://10.1.2.3", "tcp://192.168.7.7:1", "http://[::ffff:10.1.2.3]"],
            id="denied networks are those of the setting alone",
        ),
        pytest.param(
            {"allowed_networks": "127.0.0.0/8,10.0.0.0/8"},
            ["http://127.0.0.1:80", "http://10.1.2.3", "http://by-name.test"],
            ["http://11.0.0.1", "http://[::1]:80", "http://169.254.169.254"],
            id="nothing but the allowed networks",
        ),
        pytest.param(
            {"allowed_networks": "10.0.0.0/8", "denied_networks": "10.9.0.0/16"},
            ["http://10.1.2.3"],
            ["http://10.9.1.1", "http://127.0.0.1:80"],
            id="denied counts before allowed",
        ),
    ],
)
async def test_the_networks_of_the_settings_count(
    redis: RedisProcess, networks: dict[str, str], taken: Sequence[str], refused: Sequence[str]
) -> None:
    async with running(redis.url, health_check={"enabled": False, **networks}) as server:
        for i, endpoint in enumerate(taken):
            await register(server, small_service(f"s{i}", endpoint=endpoint))
        for endpoint in refused:
            told = await failure(register(server, small_service("refused", endpoint=endpoint)))
            assert told.fields == ["service.endpoint"], endpoint


async def test_what_was_registered_before_it_was_denied_can_still_be_changed_but_is_not_connected_to(
    redis: RedisProcess, agent: Agent
) -> None:
    async with running(redis.url) as before:
        await register(before, service("a", agent.endpoint()))
    async with running(redis.url, health_check={**ON_DEMAND, "denied_networks": "127.0.0.0/8"}) as server:
        health = await check(server)
        assert (health.status, health.error) == (UNHEALTHY, "address 127.0.0.1 is not allowed")
        changed = await update(server, service("a", agent.endpoint(), version="2.0.0"), "version")
        assert changed.version == "2.0.0"
        assert agent.connections == 0


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp", "ws"])
async def test_a_name_that_leads_to_a_denied_address_fails_its_check_and_is_not_connected_to(
    redis: RedisProcess, agent: Agent, scheme: str
) -> None:
    denied = {**ON_DEMAND, "denied_networks": "127.0.0.0/8,::1/128"}
    async with probing_with(redis, **denied) as server:
        await register(server, service("a", f"{scheme}://localhost:{agent.port}"))
        health = await check(server)
        assert (health.status, health.error) == (UNHEALTHY, "host name has no address that is allowed")
        assert (await health_of(server, "a")).health.error == health.error
    assert agent.connections == 0
