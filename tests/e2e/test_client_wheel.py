"""The SDK as a distribution of its own: the same code as in the whole, and nothing of what the server needs."""

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
PACKAGES = {"ossa": ROOT / "generated" / "ossa", "registry_client": ROOT / "registry_client"}

# What an agent does: it stays registered, finds others, watches them.
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

# Everything that is installed and what it asks for; without extras.
INVENTORY = textwrap.dedent("""
    import json, re
    from importlib.metadata import distributions

    print(json.dumps({
        each.name: [re.match(r"[\\w.-]+", line)[0] for line in each.requires or () if "extra ==" not in line]
        for each in distributions()
    }))
""")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(PROJECT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def client(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(wheel, tmp_path_factory.mktemp("client"))


def project(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_it_holds_the_same_files_as_the_whole_and_nothing_else(wheel: Path) -> None:
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


def test_it_asks_for_grpc_and_protobuf_only_and_as_the_whole_does() -> None:
    slim, whole = project(PROJECT / "pyproject.toml"), project(ROOT / "pyproject.toml")
    assert [re.split("[<>=]", each)[0] for each in slim["dependencies"]] == [
        "googleapis-common-protos",
        "grpcio",
        "protobuf",
    ]
    assert set(slim["dependencies"]) < set(whole["dependencies"])
    for key in ("requires-python", "license", "authors"):
        assert slim[key] == whole[key]


def test_nothing_but_its_dependencies_comes_along(client: Installed) -> None:
    inventory = json.loads(client.run("python", "-c", INVENTORY))
    asks = {normal(name): set(map(normal, wants)) for name, wants in inventory.items()}
    needed, todo = set[str](), {"ossa-registry-client"}
    while todo:
        needed |= todo
        todo = {want for name in todo for want in asks[name]} - needed
    assert asks.keys() - {"pip", "setuptools"} == needed
    assert needed <= {"ossa-registry-client", "googleapis-common-protos", "grpcio", "protobuf", "typing-extensions"}


def test_an_agent_talks_to_a_registry_through_it(client: Installed) -> None:
    with RegistryProcess() as registry:
        *printed, where = client.run("python", "-c", AGENT, registry.target).splitlines()
    assert printed == ["me", "me", "0"]
    assert Path(where).is_relative_to(client.environment)


def test_its_registry_for_tests_says_what_to_install(client: Installed) -> None:
    assert client.run("python", "-c", TESTING) == (
        "registry_client.testing starts a registry, which is not installed: "
        "install ossa-registry in the place of ossa-registry-client\n"
    )
