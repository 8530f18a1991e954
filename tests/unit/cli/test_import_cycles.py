"""The modules of the SDK and of the command line import each other without cycles."""

import ast
from collections.abc import Container, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[3]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: Container[str]) -> Iterator[str]:
    """Yield the modules that a file imports, including imports in functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=str(module), names=aliases):
                for alias in aliases:
                    submodule = f"{module}.{alias.name}"
                    yield submodule if submodule in modules else module


@pytest.mark.parametrize("package", ["registry_client", "registry_cli"])
def test_package_has_no_import_cycles(package: str) -> None:
    paths = {module_name(path): path for path in (ROOT / package).rglob("*.py")}
    graph = {name: set(imported_modules(path, paths)) & paths.keys() for name, path in paths.items()}

    TopologicalSorter(graph).prepare()  # raises CycleError
