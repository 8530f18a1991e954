"""The layers of the architecture: each imports only from the layers below it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]
MAX_MODULE_LINES: Final = 400
PACKAGES: Final = ("registry_server", "registry_client", "registry_cli", "ossa_common")

LAYERS: Final = (
    # Plumbing and types that are independent of Redis.
    "runtime",
    "errors",
    "model",
    "config",
    "instrumentation",
    # Authentication, authorisation and limits, for the use cases and the transports.
    "security",
    # What surrounds each call of every transport.
    "admission",
    # Redis, the replica in memory, and the replication between them.
    "store",
    "catalog",
    "watch",
    "replication",
    "probes",
    "health",
    "registry",
    "parts",
    # Transports do not import each other.
    ("rpc", "gateway"),
    "telemetry",
    # Composition root and server processes.
    "app",
    "embedding",
    "process",
    "workers",
    "__main__",
)
RANKS: Final = {
    name: rank for rank, layer in enumerate(LAYERS) for name in ([layer] if isinstance(layer, str) else layer)
}

# Each library is used in few places, so that the rest can be read, tested and changed without it.
OWNERS: Final = {
    "redis": ("registry_server.store",),
    "grpc": ("registry_server.rpc", "registry_server.probes", "registry_client"),
    "grpc_health": ("registry_server.rpc", "registry_server.probes", "registry_client"),
    "grpc_reflection": ("registry_server.rpc",),
    "aiohttp": (
        "registry_server.gateway",
        "registry_server.probes",
        "registry_server.security.jwks",
        "registry_server.embedding",
    ),
    "aiohttp.web": ("registry_server.gateway", "registry_server.embedding"),
    "jwt": ("registry_server.security",),
    "yaml": ("registry_server.security", "registry_cli"),
    "pydantic": ("registry_server.config", "registry_server.security.policy"),
    "click": ("registry_cli",),
    "opentelemetry": ("registry_server.telemetry",),
}


class Import(NamedTuple):
    """An import of one module by another."""

    source: str
    line: int
    target: str
    lazy: bool
    """Whether the import is inside a function or only for type checkers."""

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.target}"


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every module of a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


@cache
def imports(package: str) -> list[Import]:
    """Return all imports of a package: at the top of modules, in functions, and for type checkers."""
    return list(_read_imports(package))


def _read_imports(package: str) -> Iterator[Import]:
    for source, path in modules(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        lazy = {
            inner
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef) or _is_for_type_checkers(outer)
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{source}, line {node.lineno}: relative import"
                # The imported name may be a module. If it is not, the longer name does no harm.
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from (Import(source, node.lineno, target, node in lazy) for target in targets)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_of(module: str) -> str:
    """Return the layer of a module; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def all_imports() -> list[Import]:
    return [each for package in PACKAGES for each in imports(package)]


def import_graph(package: str) -> dict[str, set[str]]:
    """Return the imported modules of each module of a package, lazy imports included.

    The package front of the server is left out: it imports its public names on demand.
    """
    names = {name for name, _ in modules(package)} - {"registry_server"}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for each in imports(package):
        target = each.target if each.target in names else each.target.rpartition(".")[0]
        if each.source in names and target in names:
            graph[each.source].add(target)
    return graph


def test_imports_are_found() -> None:
    found = {(each.source, each.target) for each in all_imports()}

    assert ("registry_server.registry.reads", "registry_server.catalog.Discovery") in found
    assert ("registry_server.store.connecting", "redis.asyncio.Redis") in found
    assert any(each.lazy for each in all_imports())


def test_every_module_of_the_server_has_a_layer() -> None:
    names = {layer_of(module) for module, _ in modules("registry_server")} - {""}

    assert names - RANKS.keys() == set(), "add it to LAYERS here, and to the architecture document"


@pytest.mark.parametrize("layer", RANKS)
def test_layer_imports_only_from_lower_layers(layer: str) -> None:
    wrong = [
        str(each)
        for each in imports("registry_server")
        if layer_of(each.source) == layer and is_within(each.target, "registry_server")
        if (target := layer_of(each.target)) in RANKS and target != layer and RANKS[target] >= RANKS[layer]
    ]

    assert wrong == []


def test_package_itself_imports_the_server_lazily() -> None:
    # A program that needs only the version or one part must not wait until everything is loaded.
    eager = [
        str(each)
        for each in imports("registry_server")
        if each.source == "registry_server" and is_within(each.target, "registry_server") and not each.lazy
    ]

    assert eager == []


@pytest.mark.parametrize("package", PACKAGES)
def test_package_has_no_import_cycle(package: str) -> None:
    TopologicalSorter(import_graph(package)).prepare()  # raises CycleError


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_longer_than_400_lines(package: str) -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules(package)}

    assert {name: length for name, length in lengths.items() if length > MAX_MODULE_LINES} == {}


@pytest.mark.parametrize("library", OWNERS)
def test_library_is_imported_only_by_its_owners(library: str) -> None:
    wrong = [
        str(each)
        for each in all_imports()
        if is_within(each.target, library) and not any(is_within(each.source, owner) for owner in OWNERS[library])
    ]

    assert wrong == []


@pytest.mark.parametrize(
    ("package", "other"),
    [
        ("registry_client", "registry_server"),
        ("registry_client", "registry_cli"),
        ("registry_server", "registry_client"),
        ("registry_server", "registry_cli"),
    ],
)
def test_client_server_and_command_line_are_independent(package: str, other: str) -> None:
    assert [str(each) for each in imports(package) if is_within(each.target, other)] == []


def test_common_code_imports_only_the_messages_protobuf_and_the_standard_library() -> None:
    allowed = {"ossa", "ossa_common", "google", *sys.stdlib_module_names}

    assert [str(each) for each in imports("ossa_common") if each.target.partition(".")[0] not in allowed] == []


def test_command_line_imports_the_server_lazily() -> None:
    eager = [
        str(each) for each in imports("registry_cli") if is_within(each.target, "registry_server") and not each.lazy
    ]

    assert eager == []


@pytest.mark.slow
def test_probe_worker_does_not_import_redis_or_pydantic() -> None:
    code = "import sys, registry_server.probes.worker; print({'redis', 'pydantic', 'aiohttp'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == "{'aiohttp'}\n"


def test_generated_code_is_not_imported_by_its_folder() -> None:
    assert [str(each) for each in all_imports() if is_within(each.target, "generated")] == []
