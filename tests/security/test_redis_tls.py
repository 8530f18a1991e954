"""Redis over TLS with client certificates and an ACL user."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.app import serving
from registry_server.config import RedisSettings, RedisUrl
from registry_server.errors import ConfigurationError
from registry_server.store import RedisTls
from tests.support.certificates import Authority
from tests.support.markdown import text_of
from tests.support.redis_process import PORTS, RedisProcess
from tests.support.samples import small_service
from tests.support.server import running, settings

USER, PASSWORD = "registry", "s3cr3t-of-redis"
# As documented in docs/security.md.
ACL = "~ossa:* resetchannels +@read +@write +@scripting +@connection +info +time"


class TlsRedis:
    """A redis-server that requires client certificates, with a user that has only the required permissions."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory / "authority")
        self.client = self.authority.files("client", "client.test")
        certificate, key = self.authority.files("redis", "localhost")
        # If the port is in use, redis-server exits and the fixture fails.
        self.port = random.choice(PORTS)
        self.process = RedisProcess(
            directory / "redis",
            *("--tls-port", str(self.port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
            *("--tls-ca-cert-file", str(self.authority.file), "--tls-auth-clients", "yes"),
            *("--user", USER, "on", f">{PASSWORD}", *ACL.split()),
        )

    def section(self, host: str = "localhost", user: str = USER, password: str = PASSWORD) -> dict[str, object]:
        return {
            "url": RedisUrl(f"rediss://{user}:{password}@{host}:{self.port}/0"),
            "tls_ca_file": self.authority.file,
            "tls_cert_file": self.client[0],
            "tls_key_file": self.client[1],
        }


@pytest.fixture
async def tls_redis(tmp_path: Path) -> AsyncIterator[TlsRedis]:
    redis = TlsRedis(tmp_path)
    async with redis.process:
        yield redis


async def test_registry_works_over_tls_with_the_documented_acl(tls_redis: TlsRedis) -> None:
    async with running("unused", redis=tls_redis.section()) as server:
        await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service("one")))
        await server.stub.Heartbeat(pb.HeartbeatRequest(names=["one"]))
        await server.stub.GetServiceHealth(pb.GetServiceHealthRequest(name="one"))
        await server.stub.Cleanup(pb.CleanupRequest())
        await server.stub.UnregisterService(pb.UnregisterServiceRequest(name="one"))
    assert ACL in text_of("docs/security.md")


async def test_wrong_host_never_loads(tls_redis: TlsRedis) -> None:
    configured = settings("unused", redis=tls_redis.section(host="127.0.0.1"))  # not a name in the certificate
    with capture_logs() as logs:
        async with serving(configured) as served:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.5):
                    await served.parts.loaded.wait()
    assert logs
    assert PASSWORD not in str(logs) + repr(configured) + str(configured.redis.url)


@pytest.mark.parametrize("change", [{"password": "wrong"}, {"user": "unknown"}], ids=str)
async def test_wrong_credentials_end_the_start_and_are_not_logged(change: dict[str, str], tls_redis: TlsRedis) -> None:
    configured = settings("unused", redis=tls_redis.section(**change))
    with capture_logs() as logs, pytest.raises(ConfigurationError, match="AUTH: WRONGPASS") as caught:
        async with serving(configured) as served:
            await served.parts.loaded.wait()
    assert PASSWORD not in str(logs) + str(caught.value) + repr(configured) + str(configured.redis.url)


async def test_certificate_of_another_authority_is_not_trusted(tls_redis: TlsRedis, tmp_path: Path) -> None:
    other_authority = Authority(tmp_path / "other")
    async with serving(settings("unused", redis=tls_redis.section() | {"tls_ca_file": other_authority.file})) as served:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await served.parts.loaded.wait()


def test_invalid_files_are_reported_at_start(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, _ = authority.files("one")
    _, other = authority.files("two")
    for files in (RedisTls(ca=tmp_path / "nowhere"), RedisTls(ca=other), RedisTls(authority.file, certificate, other)):
        with pytest.raises(ConfigurationError, match=r"^redis\.tls_ca_file"):
            files.validate()


def test_key_without_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="together"):
        RedisSettings(tls_key_file=Path("/nowhere"))
