"""The distribution ossa-registry-client: the same SDK code as in ossa-registry, without server dependencies."""

import json
import re
import textwrap
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from registry_client.testing import RegistryProcess
from registry_server import __version__
from tests.support.wheels import Installed, build_wheel, install

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "packaging" / "client"
PACKAGES = {
    "ossa": ROOT / "generated" / "ossa",
    "ossa_common": ROOT / "ossa_common",
    "registry_client": ROOT / "registry_client",
}

# A typical agent: registers, discovers and watches services.
AGENT = textwrap.dedent("""
    import asyncio, sys
    import registry_client
    from registry_client import RegistryClient, SyncRegistryClient, make_service

    async def main(target):
        async with RegistryClient(target, timeout=60) as client:
            me = make_service("me", "http://me.test", version="1", capabilities=["c@1.2.0"], health_check="heartbeat")
            async with client.registration(me), client.cache(capability="c") as cache:
                print(cache.resolve("c", version="^1").name)
                async for event in client.watch(include_snapshot=True):
                    print(event.service.name)
                    break

    asyncio.run(main(sys.argv[1]))
    with SyncRegistryClient(sys.argv[1], timeout=60) as client:
        print(len(client.find_services()))
    print(registry_client.__file__)
""")

TESTING = textwrap.dedent("""
    from registry_client.testing import RegistryProcess

    try:
        RegistryProcess().start()
    except RuntimeError as error:
        print(error)
""")

# Installed distributions and their dependencies, without extras.
INVENTORY = textwrap.dedent("""
    import json, re
    from importlib.metadata import distributions

    print(json.dumps({
        each.name: [re.match(r"[\\w.-]+", line)[0] for line in each.requires or () if "extra ==" not in line]
        for each in distributions()
    }))
""")

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(PROJECT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, tmp_path_factory.mktemp("client"), tmp_path_factory.mktemp("home"))


def project(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_wheel_contains_exactly_the_sdk_and_the_messages(wheel: Path) -> None:
    sources = {
        f"{package}/{file.relative_to(directory).as_posix()}"
        for package, directory in PACKAGES.items()
        for file in directory.rglob("*")
        if file.suffix in {".py", ".pyi", ".typed"}
    }
    protos = {
        f"ossa/{file.relative_to(ROOT / 'protos/ossa').as_posix()}" for file in ROOT.glob("protos/ossa/**/*.proto")
    }
    archive = zipfile.ZipFile(wheel)
    names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == sources | protos
    for name in sources:
        package, _, rest = name.partition("/")
        assert archive.read(name) == (PACKAGES[package] / rest).read_bytes()
    licence = f"ossa_registry_client-{__version__}.dist-info/licenses/LICENSE"
    assert wheel.name == f"ossa_registry_client-{__version__}-py3-none-any.whl"
    assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_dependencies_are_grpc_and_protobuf_in_the_same_versions() -> None:
    client, complete = project(PROJECT / "pyproject.toml"), project(ROOT / "pyproject.toml")
    assert [re.split("[<>=]", each)[0] for each in client["dependencies"]] == [
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
    ]
    assert set(client["dependencies"]) < set(complete["dependencies"])
    for key in ("requires-python", "license", "authors"):
        assert client[key] == complete[key]


def test_only_declared_dependencies_are_installed(client: Installed) -> None:
    inventory = json.loads(client.run("python", "-c", INVENTORY))
    dependencies = {normalized(name): set(map(normalized, required)) for name, required in inventory.items()}
    needed, pending = set[str](), {"ossa-registry-client"}
    while pending:
        needed |= pending
        pending = {dependency for name in pending for dependency in dependencies[name]} - needed
    assert dependencies.keys() - {"pip", "setuptools"} == needed
    assert needed <= {"ossa-registry-client", "googleapis-common-protos", "grpcio", "protobuf", "typing-extensions"}


def test_agent_uses_a_registry_through_the_installed_client(client: Installed) -> None:
    with RegistryProcess() as registry:
        *printed, location = client.run("python", "-c", AGENT, registry.target).splitlines()
    assert printed == ["me", "me", "0"]
    assert Path(location).is_relative_to(client.environment)


def test_testing_module_reports_the_missing_server(client: Installed) -> None:
    assert client.run("python", "-c", TESTING) == (
        "registry_client.testing needs the registry server, which is not installed: "
        "install ossa-registry instead of ossa-registry-client\n"
    )
