"""Sections, tables, links and anchors of the documents in the repository."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_NOT_OURS: Final = {"build", "dist", "node_modules"}
DOCUMENTS: Final = sorted(
    file
    for file in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in _NOT_OURS for part in file.relative_to(ROOT).parts)
)
_LINK: Final = re.compile(r"\[[^\]\n]*\]\(([^()\s]+)\)")


def text_of(name: str) -> str:
    """Return the text of a file, named from the root of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def section(text: str, heading: str) -> str:
    """Return the text below a heading, up to the next heading of its level or above."""
    level, _, _ = heading.partition(" ")
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, flags=re.MULTILINE | re.DOTALL
    )
    assert found, f"no section {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of each table row, without the rows of column titles."""
    lines = text.splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for before, line in pairwise(["", *lines])
        if line.startswith("| ") and before.startswith("|")
    ]


def table(text: str, first_column: str) -> list[list[str]]:
    """Return the rows of the table whose first column has a title."""
    _, found, rest = text.partition(f"\n| {first_column} |")
    assert found, f"no table with the column {first_column!r}"
    return rows(found.strip() + rest.partition("\n\n")[0])


def bare(cell: str) -> str:
    """Return the text of a cell that is one code span."""
    assert re.fullmatch(r"`[^`]+`", cell), cell
    return cell[1:-1]


def links(text: str) -> list[str]:
    """Return the targets of the links in the prose of a document."""
    return _LINK.findall(prose(text))


def anchors_of(document: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub builds them."""
    headings = re.findall(r"^#+ (.+)$", prose(document.read_text("utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
