"""``docs/reliability.md`` describes each fault of the suite, and its table of runs is generated correctly."""

import re
from pathlib import Path

from tests.faults.suite.catalogue import CATALOGUE
from tests.faults.suite.report import BEGIN, END, table, write_page
from tests.faults.suite.run import Result
from tests.faults.test_suite import QUICK_FAULTS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
FAULTS = set(CATALOGUE) - {"none"}


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([a-z-]+)` \|", text, flags=re.MULTILINE)


def test_each_fault_is_documented_once() -> None:
    before, _, _ = TEXT.partition("## Fault suite")
    assert sorted(first_cells(before)) == sorted(FAULTS)


def test_each_named_file_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+|store/[\w/.]+)`", TEXT))
    assert len(named) > 10
    assert [
        name for name in named if not (ROOT / name).exists() and not (ROOT / "registry_server" / name).exists()
    ] == []


def test_faults_attributed_to_the_suite_test_are_in_it() -> None:
    before, _, _ = TEXT.partition("## Fault suite")
    tried = re.findall(r"^\| `([a-z-]+)` \|.*`tests/faults/test_suite\.py` \|$", before, flags=re.MULTILINE)
    assert tried
    assert set(tried) <= set(QUICK_FAULTS)


def test_recorded_runs_are_of_known_faults_and_passed() -> None:
    runs = TEXT.partition(BEGIN)[2].partition(END)[0]
    assert set(first_cells(runs)) <= FAULTS
    rows = re.findall(r"^\| `[a-z-]+` \| (\d+) \| (\d+) \|", runs, flags=re.MULTILINE)
    assert [row for row in rows if row[0] != row[1]] == []
    assert len(rows) >= 14


def test_table_sums_the_runs(tmp_path: Path) -> None:
    runs = [
        Result("redis-killed", 1, 5.0, 1000, 300, 20, 310, 1, [], "abc", "2026-01-01"),
        Result("redis-killed", 2, 5.0, 500, 100, 10, 110, 2, ["lost: x"], "abc", "2026-01-02"),
        Result("redis-killed+clock-jump", 1, 5.0, 1, 1, 1, 1, 1, [], "def", "2026-01-02"),
    ]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(page, runs)
    text = page.read_text()
    assert text == f"before\n{BEGIN}\n{table(runs)}{END}\nafter\n"
    assert "3 runs, 2026-01-01 to 2026-01-02, at abc, def" in text
    assert "| `redis-killed` | 2 | 1 | 1,500 | 400 | 30 | 420 | 1 |" in text
    assert "| mixes of two or three | 1 | 1 | 1 | 1 | 1 | 1 | 0 |" in text
