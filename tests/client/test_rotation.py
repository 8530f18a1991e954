"""Certificates, keys and authorities that are replaced while a client runs."""

import asyncio
import os
from pathlib import Path

import grpc
import pytest

from registry_client import RegistrationState, RegistryClient, Tls, make_service
from registry_client.testing import RegistryProcess
from tests.cli.program import Program
from tests.client.listener import Listener
from tests.support.certificates import Authority, Secret
from tests.support.waiting import until

pytestmark = pytest.mark.slow


class Identity:
    """The TLS files of a registry and of an agent, all of which are replaced together."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.server, self.client = Secret(directory / "server"), Secret(directory / "client")
        self.ca = directory / "ca.pem"
        self.replace()

    def replace(self) -> None:
        """Issue all certificates again, by a new authority."""
        authority = Authority(self._directory / os.urandom(4).hex())
        self.server.put(*authority.pair("127.0.0.1"))
        self.client.put(*authority.pair("agent.test"))
        new = self._directory / "ca.new"
        new.write_bytes(authority.pem)
        new.replace(self.ca)

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of a registry that requires client certificates."""
        files = {"cert": self.server.certificate, "key": self.server.key, "client-ca": self.ca}
        return tuple(f"--tls.{kind}-file={path}" for kind, path in files.items())

    @property
    def tls(self) -> Tls:
        """Configuration of the agent."""
        return Tls(ca=self.ca, certificate=self.client.certificate, key=self.client.key)


async def test_agent_outlives_its_certificates_and_a_restart(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    agent = make_service("agent", "http://agent.test", version="1.0.0", health_check="heartbeat", ttl=30)
    async with RegistryProcess(*identity.flags) as registry:
        client = RegistryClient(registry.target, tls=identity.tls, timeout=30)
        async with client, client.registration(agent) as registration, client.watch() as watch:
            pending = asyncio.ensure_future(anext(watch))
            await until(lambda: watch.connected)
            await asyncio.to_thread(registry.stop)
            identity.replace()
            await asyncio.to_thread(registry.start)
            assert (await client.get_service("agent")).name == "agent"
            await client.register_service(make_service("other", "http://other.test", version="1.0.0"))
            assert (await asyncio.wait_for(pending, 30)).service.name == "other"
            await until(lambda: registration.state is RegistrationState.REGISTERED)


async def test_running_command_outlives_its_certificates_and_a_restart(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    files = {"ca": identity.ca, "cert": identity.client.certificate, "key": identity.client.key}
    flags = [item for kind, path in files.items() for item in (f"--{kind}-file", str(path))]
    async with RegistryProcess(*identity.flags) as registry:
        program = Program(registry.target, tmp_path)
        with program.start("watch", "--snapshot", "-o", "json", *flags) as running:
            await register(registry, identity, "first")
            await until(lambda: "first" in running.out)
            await asyncio.to_thread(registry.stop)
            identity.replace()
            await asyncio.to_thread(registry.start)
            await register(registry, identity, "second")
            await until(lambda: "second" in running.out)


async def register(registry: RegistryProcess, identity: Identity, name: str) -> None:
    async with RegistryClient(registry.target, tls=identity.tls, timeout=30) as client:
        await client.register_service(make_service(name, f"http://{name}.test", version="1.0.0"))


async def test_unreadable_or_mixed_files_are_read_again(tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    listener = Listener()
    files = tmp_path / "agent.crt", tmp_path / "agent.key"
    for path, source in zip(files, (identity.client.certificate, identity.client.key), strict=True):
        path.write_bytes(source.read_bytes())
    tls = Tls(ca=identity.ca, certificate=files[0], key=files[1])

    def credentials() -> grpc.ServerCredentials:
        pair = identity.server.key.read_bytes(), identity.server.certificate.read_bytes()
        return grpc.ssl_server_credentials([pair], identity.ca.read_bytes(), require_client_auth=True)

    async with listener.listening(credentials()) as target:
        client = RegistryClient(target, tls=tls, timeout=30)
        await client.get_stats()
        port = listener.port
    async with client:
        identity.replace()
        files[1].unlink()
        async with listener.listening(credentials(), port):
            call = asyncio.ensure_future(client.get_stats())
            await asyncio.sleep(0.3)
            files[1].write_bytes(identity.client.key.read_bytes())  # belongs to the certificate that follows
            await asyncio.sleep(0.3)
            files[0].write_bytes(identity.client.certificate.read_bytes())
            await call
