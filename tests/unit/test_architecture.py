"""The code that ``docs/architecture.md`` names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
REFERENCES = sorted(
    {
        reference
        for reference in re.findall(r"`([^`\n]+)`", PAGE)
        if re.fullmatch(r"[\w./-]+(\.(py|lua|proto|yaml|yml)(:\w+(\.\w+)?)?|/)", reference)
    }
)


def names_in(source: str) -> set[str]:
    """Return the classes and functions of a module, and methods as ``Class.method``."""
    found = set()
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef():
                found.add(node.name)
                found |= {
                    f"{node.name}.{method.name}"
                    for method in node.body
                    if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                }
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                found.add(node.name)
            case _:
                pass
    return found


def test_the_page_names_code() -> None:
    assert len(REFERENCES) > 60


@pytest.mark.parametrize("reference", REFERENCES)
def test_named_code_exists(reference: str) -> None:
    path, _, name = reference.partition(":")
    files = [file for file in (ROOT / path, ROOT / "registry_server" / path) if file.exists()]
    assert files, f"{path} is neither in the repository nor in registry_server/"
    if name:
        assert name in names_in(files[0].read_text(encoding="utf-8"))


def test_no_private_name_is_mentioned() -> None:
    assert [reference for reference in REFERENCES if re.search(r"[:.]_", reference)] == []
