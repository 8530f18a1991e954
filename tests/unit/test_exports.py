"""What packages offer is what they say they offer."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("registry_server", "registry_client", "registry_cli")


def files(pattern: str) -> dict[str, Path]:
    """Module name to file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob(pattern))
    }


def names_offered(path: Path) -> Iterator[str]:
    """The names that a module binds at its top level, without what it takes from libraries for itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.ImportFrom(module=str(module), names=aliases) if module.startswith(PACKAGES):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


def has_export_list(path: Path) -> bool:
    return "__all__" in names_offered(path)


FRONTS: Final = files("__init__.py")
LISTED: Final = {name: path for name, path in files("*.py").items() if has_export_list(path)}


def test_there_are_packages_and_export_lists() -> None:
    assert {
        "registry_server.store",
        "registry_server.catalog",
        "registry_server.config",
    } <= FRONTS.keys() & LISTED.keys()


@pytest.mark.parametrize("name", FRONTS)
def test_a_package_offers_exactly_what_it_lists(name: str) -> None:
    offered = {name for name in names_offered(FRONTS[name]) if not name.startswith("_")}
    module = importlib.import_module(name)
    listed = set(getattr(module, "__all__", ()))

    assert offered <= listed
    if not hasattr(module, "__getattr__"):  # which makes names that are bound nowhere
        assert offered == listed


@pytest.mark.parametrize("name", LISTED)
def test_every_name_that_is_listed_is_there_once(name: str) -> None:
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
def test_a_package_says_what_it_is(name: str) -> None:
    assert importlib.import_module(name).__doc__
