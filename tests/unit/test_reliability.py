"""``docs/reliability.md`` tells of the fault suite as it is."""

import re
from pathlib import Path

from tests.faults.suite.catalogue import CATALOGUE
from tests.faults.suite.report import BEGIN, END, table, write_page
from tests.faults.suite.run import Result
from tests.faults.test_suite import ALWAYS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
FAULTS = set(CATALOGUE) - {"none"}


def first_cells(text: str) -> list[str]:
    return re.findall(r"^\| `([a-z-]+)` \|", text, flags=re.MULTILINE)


def test_each_fault_is_told_of_once() -> None:
    before, _, _ = TEXT.partition("## How it is tried")
    assert sorted(first_cells(before)) == sorted(FAULTS)


def test_each_file_that_it_names_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+|store/[\w/.]+)`", TEXT))
    assert len(named) > 10
    assert [
        name for name in named if not (ROOT / name).exists() and not (ROOT / "registry_server" / name).exists()
    ] == []


def test_what_the_tests_are_said_to_try_they_try() -> None:
    before, _, _ = TEXT.partition("## How it is tried")
    tried = re.findall(r"^\| `([a-z-]+)` \|.*`tests/faults/test_suite\.py` \|$", before, flags=re.MULTILINE)
    assert tried
    assert set(tried) <= set(ALWAYS)


def test_the_table_of_runs_is_of_faults_that_there_are_and_all_runs_passed() -> None:
    runs = TEXT.partition(BEGIN)[2].partition(END)[0]
    assert set(first_cells(runs)) <= FAULTS
    rows = re.findall(r"^\| `[a-z-]+` \| (\d+) \| (\d+) \|", runs, flags=re.MULTILINE)
    assert [row for row in rows if row[0] != row[1]] == []
    assert len(rows) >= 14


def test_the_table_counts_what_the_runs_were(tmp_path: Path) -> None:
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
