"""The public surface of the SDK: names, documentation, types, dependencies."""

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
MAX_LINES = 400
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


def event_received(event: Event) -> None:
    print(event.service.name)


async def agent(client: RegistryClient) -> str:
    me: Service = make_service("a", "http://a.test", version="1.0.0", capabilities=["x@1"], ttl=30, tags=["ai"])
    registration: Registration
    cache: ServiceCache
    async with client.registration(me, replicas=True) as registration, client.cache(capability="x") as cache:
        registration.on_change(state_changed)
        stop = cache.on_change(event_received)
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
    # Outside the checkout: the installed package must provide its types.
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.timeout(300)
def test_mypy_strict_accepts_correct_use_and_rejects_wrong_use(tmp_path: Path) -> None:
    done = mypy(tmp_path, USERS_FILE)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = mypy(tmp_path, WRONG)
    assert len([line for line in wrong.stdout.splitlines() if "error:" in line]) == 3, wrong.stdout


def test_promised_names_are_exported() -> None:
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
def test_public_definitions_have_docstrings(path: Path) -> None:
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
    undocumented = [node.name for node in definitions if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert undocumented == []


def test_attributes_of_exported_classes_have_docstrings() -> None:
    for name in registry_client.__all__:
        exported = getattr(registry_client, name)
        if inspect.isclass(exported) and exported.__module__.startswith("registry_client"):
            for member, value in vars(exported).items():
                if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                    assert value.__doc__, f"{name}.{member}"


def test_modules_have_at_most_400_lines() -> None:
    assert [path.name for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES] == []


def test_sdk_depends_only_on_grpc_and_protobuf() -> None:
    allowed = {"grpc", "google", "ossa", "ossa_common", "registry_client", "pytest"} | sys.stdlib_module_names
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in found} <= allowed, path
            assert path.name == "fixtures.py" or "pytest" not in found, path


def test_sdk_is_part_of_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "registry_client" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (ROOT / "registry_client" / "py.typed").exists()


def test_import_does_not_load_the_server_or_pytest() -> None:
    code = (
        "import sys, registry_client; sys.exit(any(m.startswith(('registry_server', 'pytest')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
