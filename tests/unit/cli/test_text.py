"""Escaping of untrusted text for terminals."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_cli.text import column_width, escape, escape_json

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
def test_unprintable_characters_are_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


@given(st.text(st.characters(codec="utf-8")) | st.text(HOSTILE))
def test_escaped_text_is_printable(text: str) -> None:
    assert escape(text).isprintable()
    assert escape(escape(text)) == escape(text)


@given(st.text(st.characters(codec="utf-8")) | st.text(HOSTILE))
def test_escaped_json_has_the_same_content(text: str) -> None:
    value = {"key": text, text: [1]}
    escaped = escape_json(json.dumps(value, ensure_ascii=False, indent=2))
    assert json.loads(escaped) == value
    assert all(line.isprintable() for line in escaped.split("\n"))


@pytest.mark.parametrize(("text", "columns"), [("abc", 3), ("日本", 4), ("é", 1), ("e\u0301", 1)])
def test_column_width_of_text(text: str, columns: int) -> None:
    assert column_width(text) == columns
