"""The export lists of packages match the names that they define."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("registry_server", "registry_client", "registry_cli", "ossa_common")


def modules_of(pattern: str) -> dict[str, Path]:
    """Return the modules of all packages: name to file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob(pattern))
    }


def exported_names(path: Path) -> Iterator[str]:
    """Yield the names that a module binds at its top level, without imports from libraries."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.ImportFrom(module=str(module), names=aliases) if module.startswith((*PACKAGES, "ossa")):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def has_export_list(path: Path) -> bool:
    return "__all__" in exported_names(path)


FRONTS: Final = modules_of("__init__.py")
LISTED: Final = {name: path for name, path in modules_of("*.py").items() if has_export_list(path)}


def test_packages_with_export_lists_are_found() -> None:
    assert {
        "registry_server.store",
        "registry_server.catalog",
        "registry_server.config",
    } <= FRONTS.keys() & LISTED.keys()


@pytest.mark.parametrize("name", FRONTS)
def test_package_exports_exactly_the_names_in_its_list(name: str) -> None:
    exported = {name for name in exported_names(FRONTS[name]) if not name.startswith("_")}
    module = importlib.import_module(name)
    listed = set(getattr(module, "__all__", ()))

    assert exported <= listed
    if not hasattr(module, "__getattr__"):  # it creates names on demand
        assert exported == listed


@pytest.mark.parametrize("name", LISTED)
def test_listed_names_exist_and_are_unique(name: str) -> None:
    module = importlib.import_module(name)
    listed = list(module.__all__)

    assert len(listed) == len(set(listed))
    for each in listed:
        assert getattr(module, each) is not None


@pytest.mark.parametrize("name", LISTED)
def test_no_private_name_is_listed(name: str) -> None:
    listed = importlib.import_module(name).__all__

    assert [each for each in listed if each.startswith("_") and not each.endswith("__")] == []


@pytest.mark.parametrize("name", FRONTS)
def test_every_package_has_a_docstring(name: str) -> None:
    assert importlib.import_module(name).__doc__
