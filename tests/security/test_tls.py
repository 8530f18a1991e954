"""TLS and mutual TLS on both ports, and rotation of certificates under load."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
from cryptography.x509 import load_pem_x509_certificate

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_client import PermissionDenied, RegistryClient, Tls, make_service
from registry_server.app import Serving, serving
from tests.support.certificates import Authority, Secret
from tests.support.redis_process import RedisProcess
from tests.support.security import Policy
from tests.support.server import settings
from tests.support.waiting import until

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

HEALTH = "/health"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@asynccontextmanager
async def secured(redis: RedisProcess, authority: Authority, **sections: Any) -> AsyncIterator[Serving]:
    certificate, key = authority.files("server")
    section = {"cert_file": certificate, "key_file": key, **sections.pop("tls", {})}
    async with serving(settings(redis.url, tls=section, **sections)) as served:
        async with asyncio.timeout(30):
            await served.parts.loaded.wait()
        yield served


@asynccontextmanager
async def connected_with(
    address: str, credentials: grpc.ChannelCredentials
) -> "AsyncIterator[RegistryServiceAsyncStub]":
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        yield RegistryServiceStub(channel)


def credentials_for(
    authority: Authority, certificate: bytes | None = None, key: bytes | None = None
) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.pem, key, certificate)


def client_context(authority: Authority, files: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if files:
        context.load_cert_chain(*files)
    return context


async def test_both_ports_serve_tls(redis: RedisProcess, authority: Authority) -> None:
    async with secured(redis, authority) as served:
        async with connected_with(served.grpc_address, credentials_for(authority)) as stub:
            assert (await stub.GetStats(pb.GetStatsRequest())).stats.total_services == 0
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://{served.http_address}{HEALTH}", ssl=client_context(authority)) as answer,
        ):
            assert answer.status == 200


async def test_plaintext_client_is_refused(redis: RedisProcess, authority: Authority) -> None:
    async with secured(redis, authority) as served:
        async with grpc.aio.insecure_channel(served.grpc_address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await RegistryServiceStub(channel).GetStats(pb.GetStatsRequest(), timeout=10)
            assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://{served.http_address}{HEALTH}")


async def test_client_that_trusts_another_authority_fails(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    other_authority = Authority(tmp_path / "other")
    async with (
        secured(redis, authority) as served,
        connected_with(served.grpc_address, credentials_for(other_authority)) as stub,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetStats(pb.GetStatsRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_versions_below_1_2_are_refused(
    version: ssl.TLSVersion, redis: RedisProcess, authority: Authority
) -> None:
    async with secured(redis, authority) as served:
        for address in (served.grpc_address, served.http_address):
            client = client_context(authority)
            client.set_ciphers("ALL:@SECLEVEL=0")  # otherwise OpenSSL in this client refuses old versions
            client.set_alpn_protocols(["h2", "http/1.1"])
            client.minimum_version = client.maximum_version = version
            host, _, port = address.rpartition(":")
            if version < ssl.TLSVersion.TLSv1_2:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await asyncio.open_connection(host, int(port), ssl=client)
                continue
            _, writer = await asyncio.open_connection(host, int(port), ssl=client)
            assert writer.get_extra_info("ssl_object").version() == version.name.replace("v1_", "v1.")
            writer.transport.abort()


# Mutual TLS.


def certificate_policy(tmp_path: Path) -> Policy:
    return Policy(
        tmp_path / "policy",
        certificates=[
            {"uri": "spiffe://cluster.test/agents/*", "role": "agent", "patterns": ["fleet-*"]},
            {"dns": "operator.test", "role": "operator"},
            {"common_name": "reader", "role": "viewer"},
        ],
    )


async def test_client_without_a_valid_certificate_is_refused(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    other_authority = Authority(tmp_path / "other")
    async with secured(redis, authority, tls={"client_ca_file": authority.file}) as served:
        for pair in ((None, None), other_authority.pair("a.test"), authority.pair("a.test", expired=True)):
            async with connected_with(served.grpc_address, credentials_for(authority, *pair)) as stub:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.GetStats(pb.GetStatsRequest(), timeout=10)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        url = f"https://{served.http_address}{HEALTH}"
        for files in (None, other_authority.files("client", "a.test")):
            async with aiohttp.ClientSession() as session:
                with pytest.raises((aiohttp.ClientError, ConnectionError)):
                    await session.get(url, ssl=client_context(authority, files))
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, ssl=client_context(authority, authority.files("client", "a.test"))) as answer,
        ):
            assert answer.status == 200


@pytest.mark.parametrize(
    ("names", "common_name", "role"),
    [
        (("spiffe://cluster.test/agents/seven",), None, "agent"),
        (("operator.test",), None, "operator"),
        (("other.test",), "reader", "viewer"),
        (("spiffe://another.test/agents/seven",), "operator.test", None),
    ],
)
async def test_certificate_names_map_to_roles(
    names: tuple[str, ...],
    common_name: str | None,
    role: str | None,
    redis: RedisProcess,
    authority: Authority,
    tmp_path: Path,
) -> None:
    policy = certificate_policy(tmp_path)
    files = authority.files("client", *names, common_name=common_name)
    pair = (files[0].read_bytes(), files[1].read_bytes())
    section = {"client_ca_file": authority.file}
    async with secured(redis, authority, tls=section, security=policy.section) as served:
        async with connected_with(served.grpc_address, credentials_for(authority, *pair)) as stub:
            codes = [
                await code_of(stub.GetStats(pb.GetStatsRequest())),
                await code_of(stub.Cleanup(pb.CleanupRequest())),
            ]
        statuses = []
        async with aiohttp.ClientSession(f"https://{served.http_address}") as session:
            for method, path in (("GET", "stats"), ("POST", "cleanup")):
                async with session.request(
                    method, f"/api/v1/registry/{path}", ssl=client_context(authority, files)
                ) as answer:
                    statuses.append(answer.status)
    expected = {
        None: (["UNAUTHENTICATED"] * 2, [401, 401]),
        "operator": (["OK", "OK"], [200, 200]),
    }.get(role, (["OK", "PERMISSION_DENIED"], [200, 403]))
    assert (codes, statuses) == expected


async def code_of(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_http_client_certificates_can_be_optional(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    policy = certificate_policy(tmp_path)
    section = {"client_ca_file": authority.file, "http_client_certificates": "optional"}
    async with (
        secured(redis, authority, tls=section, security=policy.section) as served,
        aiohttp.ClientSession(f"https://{served.http_address}") as session,
    ):
        async with session.get(HEALTH, ssl=client_context(authority)) as answer:
            assert answer.status == 200
        async with session.get("/api/v1/registry/stats", ssl=client_context(authority)) as answer:
            assert answer.status == 401
        async with session.get(
            "/api/v1/registry/stats", ssl=client_context(authority), headers=policy.headers("viewer")
        ) as answer:
            assert answer.status == 200


# The SDK.


async def test_sdk_registers_and_watches_over_tls_with_a_key(
    redis: RedisProcess, authority: Authority, policy: Policy
) -> None:
    service = make_service("fleet-one", "http://agent.test:1", version="1.0.0")
    async with secured(redis, authority, security=policy.section) as served:
        tls_ = Tls(ca=authority.file)
        async with (
            RegistryClient(served.grpc_address, tls=tls_, token=policy.keys["agent"]) as agent,
            RegistryClient(served.grpc_address, tls=tls_, token=lambda: policy.keys["viewer"]) as viewer,
            agent.registration(service),
        ):
            assert [each.name for each in await viewer.find_services()] == ["fleet-one"]
            async with asyncio.timeout(20):
                async for event in viewer.watch(include_snapshot=True):
                    assert event.service.name == "fleet-one"
                    break
            with pytest.raises(PermissionDenied):
                await viewer.unregister_service("fleet-one")


async def test_sdk_authenticates_with_a_certificate(redis: RedisProcess, authority: Authority, tmp_path: Path) -> None:
    policy = certificate_policy(tmp_path)
    certificate, key = authority.files("client", "spiffe://cluster.test/agents/seven")
    section = {"client_ca_file": authority.file}
    async with (
        secured(redis, authority, tls=section, security=policy.section) as served,
        RegistryClient(
            served.grpc_address, tls=Tls(ca=authority.file, certificate=certificate, key=key), timeout=20
        ) as client,
    ):
        await client.register_service(make_service("fleet-one", "http://agent.test:1", version="1.0.0"))
        with pytest.raises(PermissionDenied):
            await client.register_service(make_service("another", "http://agent.test:1", version="1.0.0"))


# Rotation.


async def test_certificate_rotation_under_load_loses_no_call(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    secret = Secret(tmp_path / "secret")
    pairs = [authority.pair("localhost", "127.0.0.1") for _ in range(4)]
    secret.put(*pairs[0])
    section = {"cert_file": secret.certificate, "key_file": secret.key}
    stop = asyncio.Event()
    calls = connections = 0

    async def call_on_one_connection(address: str) -> None:
        nonlocal calls
        async with connected_with(address, credentials_for(authority)) as stub:
            while not stop.is_set():
                await stub.GetStats(pb.GetStatsRequest(), timeout=30)
                calls += 1

    async def call_on_new_connections(address: str, http: str) -> None:
        nonlocal connections
        while not stop.is_set():
            async with connected_with(address, credentials_for(authority)) as stub:
                await stub.GetStats(pb.GetStatsRequest(), timeout=30)
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"https://{http}{HEALTH}", ssl=client_context(authority)) as answer,
            ):
                assert answer.status == 200
            connections += 1

    async with secured(redis, authority, tls=section) as served, asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(call_on_one_connection(served.grpc_address))
            group.create_task(call_on_new_connections(served.grpc_address, served.http_address))
        for pair in pairs[1:]:
            secret.put(*pair)
            for address in (served.grpc_address, served.http_address):
                await wait_for_serial(address, authority, serial_of(pair[0]))
            before = connections
            await until(lambda before=before: connections >= before + 4)  # type: ignore[misc]
        stop.set()
    assert calls > connections > 0


async def served_serial(address: str, authority: Authority) -> str:
    """Return the serial number of the certificate that a new client receives."""
    client = client_context(authority)
    client.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=client)
    certificate = writer.get_extra_info("peercert")
    writer.transport.abort()
    return str(certificate["serialNumber"]).lstrip("0")


async def wait_for_serial(address: str, authority: Authority, serial: str) -> None:
    """Wait until new clients receive a certificate; servers check the files once a second."""
    async with asyncio.timeout(20):
        while await served_serial(address, authority) != serial:
            await asyncio.sleep(0.05)


def serial_of(pem: bytes) -> str:
    return f"{load_pem_x509_certificate(pem).serial_number:X}"


async def test_certificates_of_a_removed_authority_are_refused(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    bundle = tmp_path / "clients.pem"
    bundle.write_bytes(old.pem)
    async with secured(redis, authority, tls={"client_ca_file": bundle}) as served:
        url = f"https://{served.http_address}{HEALTH}"

        async def grpc_code(client: Authority) -> str:
            async with connected_with(served.grpc_address, credentials_for(authority, *client.pair("a.test"))) as stub:
                return await code_of(stub.GetStats(pb.GetStatsRequest(), timeout=10))

        async def http_accepts(client: Authority) -> bool:
            context = client_context(authority, client.files("client", "a.test"))
            async with aiohttp.ClientSession() as session:
                try:
                    async with session.get(url, ssl=context) as answer:
                        return answer.status == 200
                except (aiohttp.ClientError, ConnectionError):
                    return False

        for trusted, untrusted in ((old, new), (new, old)):
            bundle.write_bytes(trusted.pem)
            async with asyncio.timeout(20):  # servers check the files once a second
                while await grpc_code(trusted) != "OK" or not await http_accepts(trusted):
                    await asyncio.sleep(0.05)
            assert await grpc_code(untrusted) == "UNAVAILABLE"
            assert not await http_accepts(untrusted)


async def test_connections_without_a_handshake_are_limited_and_closed(
    redis: RedisProcess, authority: Authority
) -> None:
    http = {"header_timeout_ms": 2_000, "max_connections": 20}
    async with secured(redis, authority, http=http) as served:
        host, _, port = served.http_address.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(40)]
        try:
            connector = aiohttp.TCPConnector(ssl=client_context(authority), local_addr=("127.0.0.2", 0))
            async with (
                aiohttp.ClientSession(f"https://{served.http_address}", connector=connector) as session,
                session.get(HEALTH) as answer,
            ):
                assert answer.status == 200, "a client of another address is served"
            async with asyncio.timeout(30):
                for reader, _ in silent:
                    assert await reader.read() == b""
        finally:
            for _, writer in silent:
                writer.transport.abort()
        connector = aiohttp.TCPConnector(ssl=client_context(authority))
        async with aiohttp.ClientSession(f"https://{served.http_address}", connector=connector) as session:
            for _ in range(30):
                async with session.get(HEALTH, headers={"Connection": "close"}) as answer:
                    assert answer.status == 200
