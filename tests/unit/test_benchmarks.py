"""Tests of the benchmark page: it is generated from results and covers every scenario."""

import re
from pathlib import Path

from benchmarks.__main__ import ALL, OPENINGS
from benchmarks.about import ABOUT
from benchmarks.report import Report
from benchmarks.sizing import Estimate, Load, guide
from benchmarks.summary import LINES, Value, summary

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
ORDER = ("first", "second")


def measured(name: str, value: float) -> Report:
    report = Report(rounds=3)
    report.scenario(name, f"About the {name}.")
    report.title("A table")
    report.line("a rate", "12/s")
    report.at_least("a ratio", value, 0.5)
    report.chart("Bars", [("1,000", 0.5, "1 MiB"), ("2,000", 1.0, "2 MiB")])
    return report


def test_every_scenario_has_a_description() -> None:
    assert list(ABOUT) == list(ALL)


def test_page_has_a_table_of_every_scenario_in_order() -> None:
    sections = re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in sections] == list(ALL)
    for name, text in sections:
        assert f"`python -m benchmarks {name} --rounds " in text
        assert "|---|---:|---|---|\n| " in text
        assert ABOUT[name] in text.replace("\n", " ")


def test_missed_bound_is_reported_and_fails_the_run() -> None:
    good, bad = measured("first", 0.5), measured("first", 0.4)
    assert (good.failed, bad.failed) == (False, True)
    assert "| a ratio | 0.5 | >= 0.5 | ok |" in good.page("", ORDER)
    assert "| a ratio | 0.4 | >= 0.5 | MISSED |" in bad.page("", ORDER)


def test_sections_of_other_scenarios_stay_on_the_page() -> None:
    page = measured("second", 0.7).page("", ORDER)
    page = measured("first", 0.8).page(page, ORDER)
    again = measured("second", 0.9).page(page, ORDER)
    assert again.index("## first") < again.index("About the first.") < again.index("## second")
    assert re.findall(r"^\| a ratio \| ([\d.]+) \|", again, re.MULTILINE) == ["0.8", "0.9"]
    assert again == measured("second", 0.9).page(again, ORDER)


def test_skipped_scenario_names_the_missing_tool() -> None:
    report = Report(rounds=3)
    report.scenario("first", "About it.")
    report.skipped("Fan-out", "Go, for the load generator")
    assert "| skipped, missing: Go, for the load generator |" in report.page("", ORDER)
    assert not report.failed


def test_commands_in_documents_exist() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = [
        name for file in documents for name in re.findall(r"python -m benchmarks ([a-z]+)", file.read_text("utf-8"))
    ]
    assert set(named) == set(ALL)
    assert "$(BIN)/python -m benchmarks --page docs/benchmarks.md" in (ROOT / "Makefile").read_text("utf-8")


def test_page_begins_with_the_summary_and_the_sizing_guide() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, sections = text.partition("## Measurement method")
    assert before.index("| Task | Here |") < before.index(guide()) < len(before)
    assert Report(3, OPENINGS).page(text, list(ALL)) == text
    assert sections


def test_summary_finds_its_values_on_the_page() -> None:
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    )
    measured = [line.own for line in LINES if f"\n### {line.own.table}" in sections[line.own.scenario]]
    assert len(measured) > 8
    assert [value.label for value in measured if value.read(sections) is None] == []


def test_summary_shows_medians_of_rounds_and_inverse_ratios() -> None:
    sections = {
        "a": "### One table\n\n| both | 1,200 7 |  |  |\n| both | 1,400 9 |  |  |\n| slower by | 4 | <= 5 | ok |\n"
    }
    assert Value("a", "One", "both", 0, "/s").text(sections) == "1,300 /s"
    assert Value("a", "One", "both", 1, "ms").text(sections) == "8.00 ms"
    assert Value("a", "One", "slower by", inverse=True).text(sections) == "0.25"
    assert Value("a", "Other", "both").text(sections) == ""
    assert summary({}).count("\n| ") == len(LINES) + 1


def test_estimate_adds_workers_before_a_core_is_full() -> None:
    small = Estimate.of(Load(services=100, connections=100, heartbeat_seconds=10, watches=10, changes=1))
    large = Estimate.of(Load(services=20_000, connections=20_000, heartbeat_seconds=10, watches=2_000, changes=5))
    assert small.workers == 1
    assert large.workers > 1
    assert large.cores / large.workers < 0.6
    assert large.redis_mib > small.redis_mib
