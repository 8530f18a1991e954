"""``docs/rest.md`` matches the code; its commands run in tests/e2e/test_readme.py."""

import re
from pathlib import Path

from ossa_common.event_names import EVENT_NAMES
from registry_server.admission import OUTCOMES
from registry_server.errors import RegistryError
from registry_server.gateway import sse
from registry_server.gateway.envelope import HTTP_CODES
from registry_server.gateway.parameters import FILTERS, PAGE
from registry_server.gateway.routes import BASE
from tests.rest.spec import operations
from tests.rest.test_openapi import LABEL, NOT_IN_REST

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "rest.md").read_text(encoding="utf-8")


def table(heading: str, text: str = TEXT) -> list[list[str]]:
    """Return the rows of a table."""
    _, _, rest = text.partition(f"{heading}\n|---")
    assert rest, heading
    lines = rest.split("\n\n", 1)[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_filter_is_documented() -> None:
    documented = [code for row in table("| Parameter | Matches services |") for code in codes(row[0])]
    assert sorted(documented) == sorted([*FILTERS, LABEL, *PAGE])


def test_every_error_is_documented_with_its_status() -> None:
    documented = {(int(status), *codes(code)) for status, code, _ in table("| Status | Code | What to do |")}
    expected = {(int(each.status), error.reason) for error, each in OUTCOMES.items() if error not in NOT_IN_REST}
    assert documented == expected | {(int(n), code) for n, code in HTTP_CODES.items()} | {(500, RegistryError.reason)}


def test_every_event_is_documented() -> None:
    documented = {code for row in table("| `event` | `data` |") for code in codes(row[0])}
    assert documented == {*EVENT_NAMES.values(), sse.SNAPSHOT_STARTED, sse.SNAPSHOT_COMPLETE}


def test_reference_lists_every_path_of_the_api() -> None:
    reference = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    documented = {
        (method, path)
        for methods, path, _ in table("| Method | Path | What it does |", reference)
        for method in codes(methods)
    }
    assert documented == {
        (method, f"`{path.removeprefix(BASE)}`") for method, path, _ in operations() if path.startswith(BASE)
    }
