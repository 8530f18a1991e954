import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa_common.cursors import Cursor, decode_cursor, encode_cursor
from registry_server.model.tokens import decode_page_token, encode_page_token

EPOCHS = st.text("0123456789abcdef", min_size=1, max_size=32)
CURSORS = st.builds(Cursor, EPOCHS, st.integers(0, 2**63 - 1), st.booleans())
SECRET = b"s" * 32
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)


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
        encode_page_token(SECRET, b"scope", "name"),
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


@given(st.binary(), NAMES)
def test_page_token_round_trips_in_its_scope(scope: bytes, last: str) -> None:
    assert decode_page_token(SECRET, scope, encode_page_token(SECRET, scope, last)) == last


@given(st.binary(), st.binary(), NAMES)
def test_page_token_is_refused_in_another_scope(scope: bytes, other: bytes, last: str) -> None:
    token = encode_page_token(SECRET, scope, last)
    if scope == other:
        assert decode_page_token(SECRET, other, token) == last
    else:
        with pytest.raises(ValueError, match="not a page token of this query"):
            decode_page_token(SECRET, other, token)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "!",
        "A" * 5,
        "A" * 2000,
        "ümläut",
        "\ud800",
        encode_page_token(SECRET, b"scope", "a" * 800),
        encode_cursor(Cursor("abc", 1)),
    ],
    ids=lambda token: ascii(token[:30]),
)
def test_malformed_page_token_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a page token of this query; repeat the query without one$"):
        decode_page_token(SECRET, b"scope", token)


@given(st.text() | st.binary().map(encoded))
def test_any_text_is_refused_as_a_page_token(token: str) -> None:
    with pytest.raises(ValueError, match="not a page token of this query"):
        decode_page_token(SECRET, b"scope", token)


@given(st.binary(min_size=1, max_size=100), NAMES, st.integers(0, 300))
def test_page_token_that_was_changed_or_forged_is_refused(other: bytes, last: str, bit: int) -> None:
    token = encode_page_token(SECRET, b"scope", last)
    plain = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    plain[bit // 8 % len(plain)] ^= 1 << bit % 8
    for forged in (encode_page_token(other, b"scope", last), encoded(bytes(plain)), encoded(last.encode())):
        with pytest.raises(ValueError, match="not a page token of this query"):
            decode_page_token(SECRET, b"scope", forged)


def test_scope_and_name_cannot_be_shifted_into_each_other() -> None:
    code = base64.urlsafe_b64decode(encode_page_token(SECRET, b"scope", "ab") + "==")[:16]
    with pytest.raises(ValueError, match="not a page token of this query"):
        decode_page_token(SECRET, b"scopea", encoded(code + b"b"))


@given(NAMES)
def test_no_other_text_stands_for_a_token(last: str) -> None:
    token = encode_page_token(SECRET, b"scope", last)
    cursor = encode_cursor(Cursor("abc", 1))
    for end in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=":
        for other in (token[:-1] + end, token + end):
            if other != token:
                with pytest.raises(ValueError, match="not a page token of this query"):
                    decode_page_token(SECRET, b"scope", other)
        with pytest.raises(ValueError, match="not a cursor"):
            decode_cursor(cursor + "=" + end)
    for length in range(len(token)):
        with pytest.raises(ValueError, match="not a page token of this query"):
            decode_page_token(SECRET, b"scope", token[:length])
