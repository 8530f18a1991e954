"""Text of strangers cannot act on a terminal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cli.text import plain, plain_json, width

HOSTILE = "".join(map(chr, (*range(32), *range(0x7F, 0xA0), 0x200E, 0x202E, 0x2066, 0x2028, 0xFEFF, 0xE0001)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, größer, 日本", "plain, größer, 日本"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b31m", r"\x9b31m"),
        ("\U000e0001", r"\U000e0001"),
    ],
)
def test_what_is_not_printed_as_itself_is_escaped(text: str, expected: str) -> None:
    assert plain(text) == expected


@given(st.text(st.characters(codec="utf-8")) | st.text(HOSTILE))
def test_only_what_is_printable_is_left(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)


@given(st.text(st.characters(codec="utf-8")) | st.text(HOSTILE))
def test_json_reads_back_as_what_it_was(text: str) -> None:
    value = {"key": text, text: [1]}
    shown = plain_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(shown) == value
    assert all(line.isprintable() for line in shown.split("\n"))


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("日本", 4), ("é", 1), ("e\u0301", 1)])
def test_columns(text: str, columns: int) -> None:
    assert width(text) == columns
