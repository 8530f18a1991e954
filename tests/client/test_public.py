"""What users of the SDK see: names, documentation, types."""

import ast
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import registry_client
import registry_client.testing

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "registry_client").rglob("*.py"))
LARGEST = 400
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

USERS_FILE = """
import asyncio
from pathlib import Path

from registry_client import (
    Event,
    EventType,
    NoEndpoint,
    Policy,
    Registration,
    RegistrationState,
    RegistryClient,
    Service,
    ServiceCache,
    ServiceNotFound,
    SyncRegistryClient,
    Tls,
    make_service,
)
from registry_client.testing import RegistryProcess


def state_changed(state: RegistrationState) -> None:
    print(state.value)


def happened(event: Event) -> None:
    print(event.service.name)


async def agent(client: RegistryClient) -> str:
    me: Service = make_service("a", "http://a.test", version="1.0.0", capabilities=["x@1"], ttl=30, tags=["ai"])
    registration: Registration
    cache: ServiceCache
    async with client.registration(me, replicas=True) as registration, client.cache(capability="x") as cache:
        registration.on_change(state_changed)
        stop = cache.on_change(happened)
        try:
            found: Service = cache.resolve("x", version="^1", labels={"zone": "eu"}, policy=Policy.WEIGHTED_RANDOM)
        except NoEndpoint as error:
            return str(error)
        stop()
        await registration.report("degraded", error="slow", details={"queue": [1, 2]})
        return found.endpoint
    return ""  # SIGTERM ended the block


async def watch(client: RegistryClient) -> None:
    async for event in client.watch(health=["healthy"], include_snapshot=True, types=["service_registered"]):
        if event.type == EventType.EVENT_TYPE_SERVICE_UNREGISTERED:
            return


def script(target: str) -> list[str]:
    tls = Tls(ca=Path("ca.pem"))
    with SyncRegistryClient([target], tls=tls, token=lambda: "token") as client:
        try:
            client.get_service("a", timeout=1.5)
        except ServiceNotFound as error:
            print(error.metadata["name"])
        services: list[Service] = client.find_services(capability="x", consistency="strong")
        return [service.name for service in services]


def test(registry: RegistryProcess) -> None:
    script(registry.target)
    asyncio.run(agent(RegistryClient(registry.target)))
"""
WRONG = """
from registry_client import RegistryClient, SyncRegistryClient, make_service

make_service("a", "http://a.test", version="1.0.0", colour="red")
RegistryClient("a").watch(capabilities="x")
SyncRegistryClient("a").get_service(7)
"""


def mypy(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "users_file.py"
    file.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}/cache", str(file)]
    # Away from the checkout: what is installed has to bring its types.
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.timeout(300)
def test_a_users_file_passes_mypy_strict_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    done = mypy(tmp_path, USERS_FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = mypy(tmp_path, WRONG)
    assert len([line for line in wrong.stdout.splitlines() if "error:" in line]) == 3, wrong.stdout


def test_the_names_are_those_that_were_promised() -> None:
    assert registry_client.__all__ == sorted(registry_client.__all__)
    assert {
        "RegistryClient",
        "SyncRegistryClient",
        "ServiceCache",
        "Registration",
        "Watch",
        "RegistryError",
        "ServiceNotFound",
        "RevisionMismatch",
        "RegistryUnavailable",
        "NoEndpoint",
    } <= set(registry_client.__all__)
    assert registry_client.testing.__all__ == ["RegistryProcess"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    definitions = [node for node in tree.body if isinstance(node, DEFINITIONS)]
    definitions += [
        node
        for each in definitions
        if isinstance(each, ast.ClassDef)
        for node in each.body
        if isinstance(node, DEFINITIONS)
    ]
    bare = [node.name for node in definitions if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert bare == []


def test_what_is_offered_by_name_is_documented_by_attribute() -> None:
    for name in registry_client.__all__:
        offered = getattr(registry_client, name)
        if inspect.isclass(offered) and offered.__module__.startswith("registry_client"):
            for member, value in vars(offered).items():
                if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                    assert value.__doc__, f"{name}.{member}"


def test_every_module_is_read_in_a_sitting() -> None:
    assert [path.name for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > LARGEST] == []


def test_it_needs_nothing_but_grpc_and_protobuf() -> None:
    allowed = {"grpc", "google", "ossa", "registry_client", "pytest"} | sys.stdlib_module_names
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in found} <= allowed, path
            assert path.name == "fixtures.py" or "pytest" not in found, path


def test_it_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "registry_client" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (ROOT / "registry_client" / "py.typed").exists()


def test_importing_it_is_all_that_users_pay() -> None:
    code = (
        "import sys, registry_client; sys.exit(any(m.startswith(('registry_server', 'pytest')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
