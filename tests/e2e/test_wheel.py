"""The wheel built from the checkout can be installed and run without it."""

import email
import json
import signal
import subprocess
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from registry_server import __version__
from tests.support.wheels import Installed, build_wheel, install, install_with_uv

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"ossa": ROOT / "generated" / "ossa"} | {path.parent.name: path.parent for path in ROOT.glob("*/py.typed")}
SERVE = ("serve", "--grpc.address=127.0.0.1:0", "--http.address=127.0.0.1:0", "--log.format=json")

# A client that imports only the stubs, none of the server.
CLIENT = textwrap.dedent("""
    import sys

    import grpc
    import ossa
    from ossa.registry.v1 import registry_service_pb2 as pb
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

    with grpc.insecure_channel(sys.argv[1]) as channel:
        stub = RegistryServiceStub(channel)
        service = {"name": "a", "endpoint": "http://a.test", "version": "1.0.0", "capabilities": [{"name": "c"}]}
        stub.RegisterService(pb.RegisterServiceRequest(service=service), timeout=20)
        found = stub.DiscoverServices(pb.DiscoverServicesRequest(filter={"capability": "c"}), timeout=20)
    print(ossa.__file__, *(service.name for service in found.services))
    assert not {name for name in sys.modules if name.startswith("registry_")}
""")

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def home() -> Iterator[Path]:
    """A home directory. pytest's may be too long a path for the socket of the embedded Redis."""
    with tempfile.TemporaryDirectory(prefix="ossa-") as directory:
        yield Path(directory)


@pytest.fixture(params=[install, install_with_uv], ids=["pip", "uvx"])
def installed(request: pytest.FixtureRequest, wheel: Path, tmp_path: Path, home: Path) -> Installed:
    made: Installed = request.param(wheel, tmp_path, home)
    return made


def test_wheel_contains_exactly_the_packages(wheel: Path) -> None:
    sources = {
        f"{package}/{file.relative_to(directory).as_posix()}"
        for package, directory in PACKAGES.items()
        for file in directory.rglob("*")
        if file.suffix in {".py", ".pyi", ".lua", ".typed"}
    }
    protos = {
        f"ossa/{file.relative_to(ROOT / 'protos/ossa').as_posix()}" for file in ROOT.glob("protos/ossa/**/*.proto")
    }
    assert {f"{package}/py.typed" for package in PACKAGES} | {"registry_server/store/scripts/commit.lua"} <= sources
    assert len(protos) == 3

    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert sorted(sources - names) == []
    assert protos <= names
    assert {name.partition("/")[0] for name in names} == set(PACKAGES)


def test_metadata_is_that_of_the_project(wheel: Path) -> None:
    assert wheel.name == f"ossa_registry-{__version__}-py3-none-any.whl"
    archive = zipfile.ZipFile(wheel)
    info = f"ossa_registry-{__version__}.dist-info"
    metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    assert {key: metadata[key] for key in ("Name", "Version", "Requires-Python", "License-Expression")} == {
        "Name": "ossa-registry",
        "Version": __version__,
        "Requires-Python": ">=3.11",
        "License-Expression": "MIT",
    }
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    entry_points = ConfigParser()
    entry_points.read_string(archive.read(f"{info}/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == {"ossa-registry": "registry_cli.main:main"}


def test_installed_program_serves_without_settings_or_other_programs(installed: Installed) -> None:
    assert installed.run("ossa-registry", "--version") == f"ossa-registry, version {__version__}\n"

    with serving(installed) as server:
        logged: dict[str, Any] = {}
        for line in server.stderr or ():
            event = json.loads(line)
            logged[event["event"]] = event
            if event["event"] == "ossa-registry serves":
                break
        assert Path(logged["embedded Redis started"]["data_dir"]).is_relative_to(installed.home)
        target, http = logged["gRPC listening"]["address"], logged["HTTP listening"]["address"]
        stubs, *names = installed.run("python", "-c", CLIENT, target).split()
        assert not Path(stubs).is_relative_to(ROOT)
        assert names == ["a"]
        register = ("register", "b", "http://b.test", "--version=1.0.0", "--health-check=heartbeat")
        installed.run("ossa-registry", *register, "--target", target)
        listed = json.loads(installed.run("ossa-registry", "list", "--target", target, "-o", "json"))
        assert [each["name"] for each in listed] == ["a", "b"]
        assert installed.run("ossa-registry", "healthcheck", "--ready", f"--http.address={http}") == ""
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0


@contextmanager
def serving(installed: Installed) -> Iterator[subprocess.Popen[str]]:
    """Run ``ossa-registry serve`` with the embedded Redis."""
    with subprocess.Popen(
        installed.command("ossa-registry", *SERVE),
        cwd=installed.working_directory,
        env=installed.variables(),
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            yield server
        finally:
            server.terminate()  # no effect if it has exited; uvx forwards it
