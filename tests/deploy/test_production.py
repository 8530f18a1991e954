"""The production example: its files are valid, and a registry that starts with them protects itself as described."""

import json
import re
from pathlib import Path

import grpc
import pytest
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_server.config import load_settings
from registry_server.security.exposure import check_exposure
from registry_server.security.policy import read_policy
from tests.deploy.test_nginx import substituted
from tests.support.certificates import Authority
from tests.support.deployments import watched
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import bearer, jwks, token
from tests.support.server import ServerProcess

PRODUCTION = Path(__file__).parents[2] / "deploy" / "production"
SYSTEMD = PRODUCTION.parent / "systemd" / "ossa-registry.service"
ISSUER = "https://login.example.com/realms/agents"
JWKS_URL = f"{ISSUER}/protocol/openid-connect/certs"


def text_of(name: str) -> str:
    return (PRODUCTION / name).read_text(encoding="utf-8")


def environment() -> dict[str, str]:
    lines = [line for line in text_of("environment").splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_production_settings_load_and_are_not_exposed() -> None:
    variables = environment() | {"OSSA_REGISTRY_CONFIG": str(PRODUCTION / "registry.toml")}
    settings = load_settings([], variables)
    check_exposure(settings)
    assert not settings.insecure
    assert settings.redis.url.get_secret_value().startswith("rediss+sentinel://")
    assert "CHANGE-ME" not in settings.redis.safe_url
    assert settings.redis.wait_replicas == 1
    timeout = re.search(r"^TimeoutStopSec=(\d+)s$", SYSTEMD.read_text(encoding="utf-8"), re.MULTILINE)
    assert timeout
    assert int(timeout[1]) >= settings.shutdown.grace_seconds + 10


def test_production_policy_is_valid() -> None:
    policy = read_policy(PRODUCTION / "policy.yaml")
    assert [rule.claim for rule in policy.jwt[0].rules] == [
        "realm_access.roles",
        "resource_access.ossa-registry.roles",
        "resource_access.ossa-registry.roles",
    ]
    assert policy.anonymous == "none"


@pytest.mark.own_redis
@pytest.mark.slow
async def test_production_redis_settings_start_and_let_the_registry_in(tmp_path: Path) -> None:
    async with RedisProcess(tmp_path / "redis", "--include", str(PRODUCTION / "redis.conf")) as server:
        async with Redis.from_url(server.url.replace("redis://", "redis://registry:CHANGE-ME@")) as client:
            assert await client.ping()
            assert await client.role()
            assert await client.get("ossa:services:a") is None
        async with Redis.from_url(server.url) as default:
            assert (await default.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
            assert (await default.config_get("min-replicas-to-write"))["min-replicas-to-write"] == "1"


@pytest.mark.slow
async def test_registry_with_the_production_files_grants_by_nested_claims(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.files("registry", "localhost")
    keys, policy, config = tmp_path / "jwks.json", tmp_path / "policy.yaml", tmp_path / "registry.toml"
    keys.write_text(json.dumps(jwks()), encoding="utf-8")
    policy.write_text(substituted(text_of("policy.yaml"), {f"jwks_url: {JWKS_URL}": f"jwks_file: {keys}"}), "utf-8")
    changes = {
        "/etc/ossa-registry/tls.crt": str(certificate),
        "/etc/ossa-registry/tls.key": str(key),
        "/etc/ossa-registry/policy.yaml": str(policy),
        "/etc/ossa-registry/redis-ca.crt": str(authority.file),
        "/var/log/ossa-registry/audit.log": str(tmp_path / "audit.log"),
    }
    config.write_text(substituted(text_of("registry.toml"), changes), encoding="utf-8")
    agent = token(iss=ISSUER, azp="planner", resource_access={"ossa-registry": {"roles": ["agent"]}})
    operator = token(iss=ISSUER, azp="console", realm_access={"roles": ["registry-operator"]})
    stranger = token(iss=ISSUER, azp="other", resource_access={"account": {"roles": ["agent"]}})

    async with watched(tmp_path / "sentinel") as redis:
        # The Sentinels of the tests speak no TLS.
        variables = {"OSSA_REGISTRY_CONFIG": str(config), "OSSA_REGISTRY_REDIS__URL": redis.url}
        async with ServerProcess(env=variables) as server:
            credentials = grpc.ssl_channel_credentials(authority.pem)
            address = f"localhost:{server.grpc_address.rpartition(':')[2]}"
            async with grpc.aio.secure_channel(address, credentials) as channel:
                stub = RegistryServiceStub(channel)

                async def code_of(name: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
                    try:
                        await stub.RegisterService(
                            pb.RegisterServiceRequest(service=small_service(name)), metadata=metadata, timeout=30
                        )
                    except grpc.aio.AioRpcError as error:
                        return error.code()
                    return grpc.StatusCode.OK

                assert await code_of("planner-1", *bearer(agent)) is grpc.StatusCode.OK
                assert await code_of("billing", *bearer(agent)) is grpc.StatusCode.PERMISSION_DENIED
                assert await code_of("billing", *bearer(operator)) is grpc.StatusCode.OK
                assert await code_of("other", *bearer(stranger)) is grpc.StatusCode.UNAUTHENTICATED
                assert await code_of("other") is grpc.StatusCode.UNAUTHENTICATED
    written = [json.loads(line) for line in (tmp_path / "audit.log").read_text(encoding="utf-8").splitlines()]
    assert {"keycloak:planner", "keycloak:console"} <= {line["identity"] for line in written}
