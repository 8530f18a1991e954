"""Denied networks: endpoints with a literal address, and names that resolve to one."""

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

pytestmark = pytest.mark.usefixtures("no_pause_detection")


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
async def test_endpoint_with_a_denied_address_is_refused(server: Server, endpoint: str) -> None:
    refused = await failure(register(server, small_service("a", endpoint=endpoint)))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["service.endpoint"])
    assert "is not allowed by the settings of this registry" in refused.message

    known = await register(server, small_service("a"))
    refused = await failure(update(server, small_service("a", endpoint=endpoint), "endpoint"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["service.endpoint"])
    assert await get(server, "a") == known


async def test_other_bad_fields_are_reported_with_a_denied_endpoint(server: Server) -> None:
    bad = small_service("-", version="", endpoint=DENIED[0], metadata={"tags": [""]})
    refused = await failure(register(server, bad))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert {"service.name", "service.version", "service.endpoint"} < set(refused.fields)
    assert len(set(refused.fields)) == len(refused.fields)

    await register(server, small_service("a"))
    bad = small_service("a", version="", endpoint=DENIED[0])
    refused = await failure(update(server, bad, "version", "endpoint"))
    assert sorted(refused.fields) == ["service.endpoint", "service.version"]


async def test_denied_endpoint_in_a_batch_affects_only_its_service(server: Server) -> None:
    batch = [small_service("a"), small_service("b", endpoint=DENIED[0], version=""), small_service("c")]
    results = (await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=batch))).results
    assert [result.service.name for result in results] == ["a", "", "c"]
    refused = failure_in(results[1].status)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(refused.fields) == ["services[1].endpoint", "services[1].version"]
    assert [each.name for each in (await discover(server)).services] == ["a", "c"]


@pytest.mark.parametrize(
    ("networks", "accepted", "refused"),
    [
        pytest.param(
            {"denied_networks": "10.0.0.0/8, 192.168.0.0/16"},
            ["http://127.0.0.1:80", "http://11.0.0.1"],
            ["http://10.1.2.3", "tcp://192.168.7.7:1", "http://[::ffff:10.1.2.3]", *DENIED],
            id="the setting adds to the networks that are always denied",
        ),
        pytest.param(
            {"allowed_networks": "127.0.0.0/8,10.0.0.0/8"},
            ["http://127.0.0.1:80", "http://10.1.2.3", "http://by-name.test"],
            ["http://11.0.0.1", "http://[::1]:80", "http://169.254.169.254"],
            id="only the allowed networks",
        ),
        pytest.param(
            {"allowed_networks": "127.0.0.0/8,169.254.7.0/24,0.0.0.0/32"},
            ["http://169.254.7.8:80", "http://0.0.0.0:80"],
            ["http://169.254.169.254", "http://[::]:80"],
            id="an allowed network within one that is always denied",
        ),
        pytest.param(
            {"allowed_networks": "10.0.0.0/8", "denied_networks": "10.9.0.0/16"},
            ["http://10.1.2.3"],
            ["http://10.9.1.1", "http://127.0.0.1:80"],
            id="denied takes precedence over allowed",
        ),
    ],
)
async def test_networks_of_the_settings_are_applied(
    redis: RedisProcess, networks: dict[str, str], accepted: Sequence[str], refused: Sequence[str]
) -> None:
    async with running(redis.url, health_check={"enabled": False, **networks}) as server:
        for i, endpoint in enumerate(accepted):
            await register(server, small_service(f"s{i}", endpoint=endpoint))
        for endpoint in refused:
            error = await failure(register(server, small_service("refused", endpoint=endpoint)))
            assert error.fields == ["service.endpoint"], endpoint


async def test_service_at_a_newly_denied_address_can_be_updated_but_not_probed(
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
async def test_name_that_resolves_to_a_denied_address_is_not_connected_to(
    redis: RedisProcess, agent: Agent, scheme: str
) -> None:
    denied = {**ON_DEMAND, "denied_networks": "127.0.0.0/8,::1/128"}
    async with probing_with(redis, **denied) as server:
        await register(server, service("a", f"{scheme}://localhost:{agent.port}"))
        health = await check(server)
        assert (health.status, health.error) == (UNHEALTHY, "host name has no allowed address")
        assert (await health_of(server, "a")).health.error == health.error
    assert agent.connections == 0
