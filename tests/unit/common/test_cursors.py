import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa_common.cursors import Cursor, decode_cursor, encode_cursor

EPOCHS = st.text("0123456789abcdef", min_size=1, max_size=32)
SCOPES = st.text("0123456789abcdef", max_size=32)
CURSORS = st.builds(Cursor, EPOCHS, st.integers(0, 2**63 - 1), st.booleans(), SCOPES)


def encoded(plain: bytes) -> str:
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


@given(CURSORS)
def test_cursor_round_trips(cursor: Cursor) -> None:
    assert decode_cursor(encode_cursor(cursor)) == cursor


@given(CURSORS, CURSORS)
def test_different_cursors_have_different_texts(one: Cursor, other: Cursor) -> None:
    assert (encode_cursor(one) == encode_cursor(other)) == (one == other)


@given(CURSORS)
def test_cursor_needs_no_escaping_in_urls_and_headers(cursor: Cursor) -> None:
    assert set(encode_cursor(cursor)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "r",
        "not a cursor",
        "ümläut",
        "\ud800",
        "A" * 5,
        "A" * 2000,
        encoded(b"r"),
        encoded(b"r1"),
        encoded(b"r1."),
        encoded(b"r.abc"),
        encoded(b"x1.abc"),
        encoded(b"R1.abc"),
        encoded(b"r-1.abc"),
        encoded(b"r+1.abc"),
        encoded(b"r 1.abc"),
        encoded(b"r0x1.abc"),
        encoded(b"r1_0.abc"),
        encoded(b"rg.abc"),
        encoded(b"r1.a b"),
        encoded(b"r1.abc\n"),
        encoded("r1.ä".encode()),
        encoded(b"r\xff1.abc"),
        encode_cursor(Cursor("abc", 1)) + "\n",
        " " + encode_cursor(Cursor("abc", 1)),
        encoded(bytes(16) + b"name"),  # a page token
    ],
    ids=lambda text: ascii(text[:30]),
)
def test_malformed_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a cursor of this registry$"):
        decode_cursor(text)


@given(st.text() | st.binary().map(encoded))
def test_any_text_is_decoded_as_a_cursor_or_refused(text: str) -> None:
    try:
        cursor = decode_cursor(text)
    except ValueError:
        return
    assert cursor.revision >= 0
    assert cursor.epoch


def test_no_other_text_stands_for_a_cursor() -> None:
    text = encode_cursor(Cursor("abcd", 1))
    assert text.endswith("A")  # base64 ignores its last four bits
    for other in (text[:-1] + "B", text[:-1] + "P", text + "=", text + "=="):
        with pytest.raises(ValueError, match="is not a cursor"):
            decode_cursor(other)
