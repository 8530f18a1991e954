"""TLS and mTLS on both ports, and certificates that change while there is load."""

import asyncio
import itertools
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
from structlog.testing import capture_logs

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from registry_client import PermissionDenied, RegistryClient, Tls, make_service
from registry_server.app import Serving, serving
from registry_server.config import TlsSettings
from registry_server.errors import ConfigurationError
from registry_server.security import tls
from registry_server.security.tls import Certificates
from tests.support.certificates import Authority, Secret
from tests.support.redis_process import RedisProcess
from tests.support.security import Policy
from tests.support.server import settings

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

HEALTH = "/health"


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "CHECK_INTERVAL_SECONDS", 0.0)


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
async def calling(address: str, credentials: grpc.ChannelCredentials) -> "AsyncIterator[RegistryServiceAsyncStub]":
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        yield RegistryServiceStub(channel)


def trusting(
    authority: Authority, certificate: bytes | None = None, key: bytes | None = None
) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(authority.pem, key, certificate)


def context(authority: Authority, files: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(authority.file))
    if files:
        made.load_cert_chain(*files)
    return made


async def test_both_ports_speak_tls(redis: RedisProcess, authority: Authority) -> None:
    async with secured(redis, authority) as served:
        async with calling(served.grpc_address, trusting(authority)) as stub:
            assert (await stub.GetStats(pb.GetStatsRequest())).stats.total_services == 0
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://{served.http_address}{HEALTH}", ssl=context(authority)) as answer,
        ):
            assert answer.status == 200


async def test_a_plaintext_client_is_refused(redis: RedisProcess, authority: Authority) -> None:
    async with secured(redis, authority) as served:
        async with grpc.aio.insecure_channel(served.grpc_address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await RegistryServiceStub(channel).GetStats(pb.GetStatsRequest(), timeout=10)
            assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://{served.http_address}{HEALTH}")


async def test_a_client_of_another_authority_does_not_talk_to_the_server(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    async with secured(redis, authority) as served, calling(served.grpc_address, trusting(stranger)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetStats(pb.GetStatsRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_less_than_tls_1_2_is_refused(version: ssl.TLSVersion, redis: RedisProcess, authority: Authority) -> None:
    async with secured(redis, authority) as served:
        for address in (served.grpc_address, served.http_address):
            client = context(authority)
            client.set_ciphers("ALL:@SECLEVEL=0")  # else this client itself would not try
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


# mTLS.


def certificate_policy(tmp_path: Path) -> Policy:
    return Policy(
        tmp_path / "policy",
        certificates=[
            {"uri": "spiffe://cluster.test/agents/*", "role": "agent", "patterns": ["fleet-*"]},
            {"dns": "operator.test", "role": "operator"},
            {"common_name": "reader", "role": "viewer"},
        ],
    )


async def test_without_a_certificate_nobody_is_let_in(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "stranger")
    async with secured(redis, authority, tls={"client_ca_file": authority.file}) as served:
        for shown in ((None, None), stranger.pair("a.test"), authority.pair("a.test", expired=True)):
            async with calling(served.grpc_address, trusting(authority, *shown)) as stub:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub.GetStats(pb.GetStatsRequest(), timeout=10)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        url = f"https://{served.http_address}{HEALTH}"
        for files in (None, stranger.files("client", "a.test")):
            async with aiohttp.ClientSession() as session:
                with pytest.raises((aiohttp.ClientError, ConnectionError)):
                    await session.get(url, ssl=context(authority, files))
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, ssl=context(authority, authority.files("client", "a.test"))) as answer,
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
async def test_a_certificate_is_an_identity(
    names: tuple[str, ...],
    common_name: str | None,
    role: str | None,
    redis: RedisProcess,
    authority: Authority,
    tmp_path: Path,
) -> None:
    policy = certificate_policy(tmp_path)
    files = authority.files("client", *names, common_name=common_name)
    shown = (files[0].read_bytes(), files[1].read_bytes())
    section = {"client_ca_file": authority.file}
    async with secured(redis, authority, tls=section, security=policy.section) as served:
        async with calling(served.grpc_address, trusting(authority, *shown)) as stub:
            codes = [
                await code_of(stub.GetStats(pb.GetStatsRequest())),
                await code_of(stub.Cleanup(pb.CleanupRequest())),
            ]
        statuses = []
        async with aiohttp.ClientSession(f"https://{served.http_address}") as session:
            for method, path in (("GET", "stats"), ("POST", "cleanup")):
                async with session.request(method, f"/api/v1/registry/{path}", ssl=context(authority, files)) as answer:
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


async def test_http_certificates_can_be_left_to_the_client(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    policy = certificate_policy(tmp_path)
    section = {"client_ca_file": authority.file, "http_client_certificates": "optional"}
    async with (
        secured(redis, authority, tls=section, security=policy.section) as served,
        aiohttp.ClientSession(f"https://{served.http_address}") as session,
    ):
        async with session.get(HEALTH, ssl=context(authority)) as answer:
            assert answer.status == 200
        async with session.get("/api/v1/registry/stats", ssl=context(authority)) as answer:
            assert answer.status == 401
        async with session.get(
            "/api/v1/registry/stats", ssl=context(authority), headers=policy.headers("viewer")
        ) as answer:
            assert answer.status == 200


# The SDK.


async def test_the_sdk_registers_and_watches_over_tls_with_a_key(
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


async def test_the_sdk_shows_a_certificate(redis: RedisProcess, authority: Authority, tmp_path: Path) -> None:
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


async def test_certificates_change_under_load_and_no_call_is_lost(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    secret = Secret(tmp_path / "secret")
    pairs = [authority.pair("localhost", "127.0.0.1") for _ in range(4)]
    secret.put(*pairs[0])
    section = {"cert_file": secret.certificate, "key_file": secret.key}
    stop = asyncio.Event()
    calls = connections = 0

    async def steady(address: str) -> None:
        nonlocal calls
        async with calling(address, trusting(authority)) as stub:
            while not stop.is_set():
                await stub.GetStats(pb.GetStatsRequest(), timeout=30)
                calls += 1

    async def anew(address: str, http: str) -> None:
        nonlocal connections
        while not stop.is_set():
            async with calling(address, trusting(authority)) as stub:
                await stub.GetStats(pb.GetStatsRequest(), timeout=30)
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"https://{http}{HEALTH}", ssl=context(authority)) as answer,
            ):
                assert answer.status == 200
            connections += 1

    async with secured(redis, authority, tls=section) as served, asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(steady(served.grpc_address))
            group.create_task(anew(served.grpc_address, served.http_address))
        for pair in pairs[1:]:
            before = connections
            secret.put(*pair)
            async with asyncio.timeout(60):
                while connections < before + 4:
                    await asyncio.sleep(0.01)
            for address in (served.grpc_address, served.http_address):
                assert await shown_by(address, authority) == serial_of(pair[0])
        stop.set()
    assert calls > connections > 0


async def shown_by(address: str, authority: Authority) -> str:
    """Serial number of the certificate that a server shows to a new client."""
    client = context(authority)
    client.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=client)
    certificate = writer.get_extra_info("peercert")
    writer.transport.abort()
    return str(certificate["serialNumber"]).lstrip("0")


def serial_of(pem: bytes) -> str:
    from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415

    return f"{load_pem_x509_certificate(pem).serial_number:X}"


async def test_an_authority_that_is_taken_away_vouches_for_nobody_any_more(
    redis: RedisProcess, authority: Authority, tmp_path: Path
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    bundle = tmp_path / "clients.pem"
    bundle.write_bytes(old.pem)
    async with secured(redis, authority, tls={"client_ca_file": bundle}) as served:
        url = f"https://{served.http_address}{HEALTH}"
        for good, bad in ((old, new), (new, old)):
            bundle.write_bytes(good.pem)
            async with calling(served.grpc_address, trusting(authority, *good.pair("a.test"))) as stub:
                await stub.GetStats(pb.GetStatsRequest(), timeout=20)
            async with calling(served.grpc_address, trusting(authority, *bad.pair("a.test"))) as stub:
                assert await code_of(stub.GetStats(pb.GetStatsRequest(), timeout=10)) == "UNAVAILABLE"
            async with aiohttp.ClientSession() as session:
                async with session.get(url, ssl=context(authority, good.files("g", "a.test"))) as answer:
                    assert answer.status == 200
                with pytest.raises((aiohttp.ClientError, ConnectionError)):
                    await session.get(url, ssl=context(authority, bad.files("b", "a.test")))


def breakages(directory: Path, authority: Authority) -> Iterator[tuple[str, Path, bytes]]:
    certificate, key = authority.pair("localhost")
    yield "half of a certificate", directory / "server.crt", certificate[: len(certificate) // 2]
    yield "a key that is not that of the certificate", directory / "server.key", key
    yield "an empty key", directory / "server.key", b""
    yield "text", directory / "server.crt", b"no certificate\n"


def test_what_is_not_a_pair_changes_nothing_and_is_told_once(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.files("server")
    good = [file.read_bytes() for file in files]
    certificates = Certificates(TlsSettings(cert_file=files[0], key_file=files[1]))
    bundle = certificates.current()
    ticks = itertools.count(time.time_ns() + 10**9, 10**9)
    for what, file, content in breakages(tmp_path, authority):
        with capture_logs() as logs:
            file.write_bytes(content)
            touch(file, next(ticks))
            assert certificates.current() is bundle, what
            assert certificates.current() is bundle, what
        assert [line["event"] for line in logs] == ["new certificates are no good; the old ones stay"], what
        for file_, content_ in zip(files, good, strict=True):
            file_.write_bytes(content_)
            touch(file_, next(ticks))
        assert certificates.current() is not bundle, what
        bundle = certificates.current()
        assert [bundle.certificate, bundle.key] == good
    files[0].unlink()
    assert certificates.current() is bundle


def touch(file: Path, nanoseconds: int) -> None:
    os.utime(file, ns=(nanoseconds, nanoseconds))


def test_files_that_are_no_good_at_the_start_are_told_by_the_names_of_their_settings(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.files("server")
    other = authority.files("other")[1]
    for files, told in (
        ((certificate, tmp_path / "nowhere"), "No such file"),
        ((certificate, other), "KEY_VALUES_MISMATCH"),
        ((key, key), "not a certificate and its key"),
    ):
        with pytest.raises(ConfigurationError, match=told) as caught:
            Certificates(TlsSettings(cert_file=files[0], key_file=files[1]))
        assert str(caught.value).startswith("tls.cert_file, tls.key_file: ")
        assert "PRIVATE" not in str(caught.value)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    certificate, key = Authority(tmp_path).files("server")
    private = load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(ConfigurationError, match="encrypted"):
        Certificates(TlsSettings(cert_file=certificate, key_file=key))
