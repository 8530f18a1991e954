"""Tables, ages, colours and YAML."""

import sys
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from registry_cli.output import Cell, Output, fit_columns, format_age, shorten_list, yaml_text

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (61, "1m1s"),
        (599, "9m59s"),
        (600, "10m"),
        (3_660, "1h1m"),
        (86_400, "1d"),
        (90_000, "1d1h"),
        (86_400 * 30, "30d"),
        (86_400 * 400, "1y35d"),
    ],
)
def test_age_has_one_or_two_units(seconds: float, expected: str) -> None:
    assert format_age(NOW - timedelta(seconds=seconds), NOW) == expected


def test_long_list_is_shortened() -> None:
    assert shorten_list(["a", "b", "c"], 2) == "a,b +1"
    assert shorten_list(["a", "b"], 2) == shorten_list(["a", "b"], 0) == "a,b"
    assert shorten_list([], 2) == ""


def test_columns_are_as_wide_as_their_longest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table", color=False, quiet=False).print_table(("A", "B"), [("日本", "x"), ("abcdefg", ""), ("\x1b", "y")])
    assert capsys.readouterr().out.splitlines() == [
        "A         B",
        "日本      x",
        "abcdefg   -",
        r"\x1b      y",
    ]


def test_overlong_cell_is_separated_from_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table", color=False, quiet=False).print_row([("abcdefghij", 3), ("x", 0)])
    assert capsys.readouterr().out == "abcdefghij x\n"


def test_colours_do_not_affect_alignment(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table", color=True, quiet=False).print_table(("A", "B"), [(Cell("x", "red"), "y")])
    assert capsys.readouterr().out.splitlines()[1] == "\x1b[31mx\x1b[0m   y"


@pytest.mark.parametrize(
    ("variables", "terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, False, False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_conditions_for_colours(
    variables: dict[str, str], *, terminal: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert Output("table", color=None, quiet=False).color is expected
    assert Output("table", color=True, quiet=False).color
    assert not Output("table", color=False, quiet=False).color


@given(st.recursive(st.none() | st.booleans() | st.text(st.characters(codec="utf-8")), st.lists))
def test_yaml_round_trips_and_is_printable(value: object) -> None:
    text = yaml_text({"value": value})
    assert yaml.safe_load(text) == {"value": value}
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize(
    ("widths", "limit", "expected"),
    [
        ([10, 20, 30], None, [10, 20, 30]),
        ([10, 20, 30], 66, [10, 20, 30]),
        ([10, 20, 30], 56, [10, 20, 20]),
        ([10, 20, 30], 46, [10, 15, 15]),
        ([10, 6, 30], 30, [10, 6, 8]),
        ([30, 6, 30], 40, [20, 6, 8]),
        ([30, 20, 30], 20, [8, 8, 8]),
        ([], 10, []),
    ],
)
def test_widest_columns_are_reduced_and_the_first_one_last(
    widths: list[int], limit: int | None, expected: list[int]
) -> None:
    assert fit_columns(widths, limit) == expected


def test_table_is_cut_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    row = ("name", "日本語日本語日本語", "x")
    for form, is_terminal, expected in (
        ("table", True, "name   日本語日…   x\n"),
        ("table", False, "name   日本語日本語日本語   x\n"),
        ("wide", True, "name   日本語日本語日本語   x\n"),
    ):
        monkeypatch.setattr(sys.stdout, "isatty", lambda is_terminal=is_terminal: is_terminal)
        Output(form, color=False, quiet=False).print_rows([row])  # type: ignore[arg-type]
        assert capsys.readouterr().out == expected
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Output("table", color=False, quiet=False).print_row([("12:00:00", 8), ("a very long text", 0)])
    assert capsys.readouterr().out == "12:00:00   a very l…\n"
