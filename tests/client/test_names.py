"""Names with slashes and versions of any text in the SDK and the command line."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from registry_client import Capability, HealthStatus, RegistryClient, make_service
from registry_client.testing import RegistryProcess

TIMEOUT: Final = 30.0
NAMES: Final = ("@acme/agent", "io.github.acme/weather")
VERSIONS: Final = ("release 5", "1.0 (build 7)", "==1.0", "1.2.3+build.5", ">=1,<2", " 1.0", "~nightly", "1.x", "* *")


async def test_name_with_slashes_works_in_every_call(client: RegistryClient) -> None:
    for name in NAMES:
        service = make_service(name, "mcp://tools.company.com", version="1", group="@acme/agents")
        async with client.registration(service) as registration, asyncio.timeout(TIMEOUT):
            # By heartbeats: there is no port to probe.
            assert registration.service.health.status == HealthStatus.HEALTH_STATUS_HEALTHY
            assert (await client.get_service(name)).name == name
            assert [found.name for found in await client.find_services(group="@acme/agents")] == [name]
            assert [found.name for found in await client.find_services(name_pattern=f"^{name}$")] == [name]
            async with client.cache(group="@acme/agents") as cache:
                assert cache.get(name) is not None


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_version_finds_itself(client: RegistryClient, version: str) -> None:
    capability = Capability(name="translate", version=version)
    service = make_service("a", "http://a.test", version=version, capabilities=[capability], health_check="heartbeat")
    await client.register_service(service)
    assert [found.version for found in await client.find_services(version=version)] == [version]
    found = await client.find_services(capability="translate", capability_version=version)
    assert [each.capabilities[0].version for each in found] == [version]
    async with client.cache() as cache:
        assert cache.resolve("translate", version=version).name == "a"


def test_command_line_accepts_names_with_slashes(registry: RegistryProcess, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        program = Path(sys.executable).with_name("ossa-registry")
        done = subprocess.run(
            [program, *arguments, "--target", registry.target],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def registered(name: str) -> list[str]:
        return [line.split()[0] for line in run("list", "--name", f"^{name}$").splitlines()[1:]]

    for name in NAMES:
        run("register", name, "mcp://tools.company.com:9000", "--version", "1", "--health-check", "heartbeat")
        assert registered(name) == [name]
        assert name in run("get", name)
        assert run("heartbeat", name) == f"{name} renewed\n"
        assert name in run("unregister", name)
        assert registered(name) == []
