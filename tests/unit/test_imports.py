"""The order of layers that the architecture gives: each imports only from those before it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]

LAYERS: Final = (
    # Plumbing and types that know nothing of services in Redis.
    "runtime",
    "errors",
    "model",
    "config",
    "instrumentation",
    # Who calls, and what callers may do; used by the use cases and by the transports.
    "security",
    # Redis, the copy in memory, and what keeps the two in agreement.
    "store",
    "catalog",
    "watch",
    "replication",
    "probes",
    "health",
    "registry",
    # Transports do not import each other.
    ("rpc", "gateway"),
    "telemetry",
    # Composition, and the processes that serve.
    "app",
    "embedding",
    "process",
    "workers",
    "__main__",
)
RANKS: Final = {
    name: rank for rank, layer in enumerate(LAYERS) for name in ([layer] if isinstance(layer, str) else layer)
}

# Each of these is used in one place, so that the rest can be read, tested and changed without it.
KEPT_TO: Final = {
    "redis": ("registry_server.store",),
    "grpc": ("registry_server.rpc", "registry_server.probes", "registry_client"),
    "grpc_health": ("registry_server.rpc", "registry_server.probes", "registry_client"),
    "grpc_reflection": ("registry_server.rpc",),
    "aiohttp": ("registry_server.gateway", "registry_server.probes", "registry_server.security.jwks"),
    "aiohttp.web": ("registry_server.gateway",),
    "jwt": ("registry_server.security",),
    "yaml": ("registry_server.security", "registry_cli"),
    "pydantic": ("registry_server.config", "registry_server.security.policy"),
    "pydantic_settings": ("registry_server.config",),
    "click": ("registry_cli",),
    "opentelemetry": ("registry_server.telemetry",),
}


class Import(NamedTuple):
    """One module that another imports."""

    source: str
    line: int
    target: str
    lazy: bool
    """Within a function: done when that is called; or for type checkers alone: never done."""

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.target}"


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module; nothing if the package is not there (yet)."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def imports(package: str) -> Iterator[Import]:
    """What every module of a package imports, wherever that stands: at the top, in a function, for type checkers."""
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
                # What is imported may itself be a module; that it is none then does no harm.
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from (Import(source, node.lineno, target, node in lazy) for target in targets)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer_of(module: str) -> str:
    """The part of the server that a module belongs to; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


SERVER = list(imports("registry_server"))
EVERYTHING = [*SERVER, *imports("registry_client"), *imports("registry_cli")]


def test_the_imports_are_found() -> None:
    found = {(each.source, each.target) for each in EVERYTHING}

    assert ("registry_server.registry.reads", "registry_server.catalog.Discovery") in found
    assert ("registry_server.store.connecting", "redis.asyncio.Redis") in found
    assert any(each.lazy for each in EVERYTHING)


def test_every_module_of_the_server_has_its_layer() -> None:
    names = {layer_of(module) for module, _ in modules("registry_server")} - {""}

    assert names - RANKS.keys() == set(), "say where it stands: in LAYERS here, and in the architecture"


@pytest.mark.parametrize("layer", RANKS)
def test_a_layer_imports_only_from_those_before_it(layer: str) -> None:
    wrong = [
        str(each)
        for each in SERVER
        if layer_of(each.source) == layer and within(each.target, "registry_server")
        if (target := layer_of(each.target)) in RANKS and target != layer and RANKS[target] >= RANKS[layer]
    ]

    assert wrong == []


def test_the_package_itself_imports_nothing_of_the_server_at_once() -> None:
    # Whoever wants the version, or a single part, must not wait until all of them are loaded.
    eager = [
        str(each)
        for each in SERVER
        if each.source == "registry_server" and within(each.target, "registry_server") and not each.lazy
    ]

    assert eager == []


@pytest.mark.parametrize("library", KEPT_TO)
def test_a_library_is_used_only_where_it_belongs(library: str) -> None:
    wrong = [
        str(each)
        for each in EVERYTHING
        if within(each.target, library) and not any(within(each.source, place) for place in KEPT_TO[library])
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
def test_client_server_and_command_line_do_not_need_each_other(package: str, other: str) -> None:
    assert [str(each) for each in imports(package) if within(each.target, other)] == []


def test_the_command_line_loads_the_server_only_when_it_serves() -> None:
    eager = [str(each) for each in imports("registry_cli") if within(each.target, "registry_server") and not each.lazy]

    assert eager == []


def test_the_probe_process_loads_only_what_it_needs() -> None:
    code = "import sys, registry_server.probes.worker; print({'redis', 'pydantic', 'aiohttp'} & sys.modules.keys())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == "{'aiohttp'}\n"


def test_nobody_imports_the_generated_code_by_its_folder() -> None:
    assert [str(each) for each in EVERYTHING if within(each.target, "generated")] == []
