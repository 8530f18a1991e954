import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa_common.cursors import Cursor, encode_cursor
from registry_server.model.tokens import decode_page_token, encode_page_token

SECRET = b"s" * 32
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)


def encoded(plain: bytes) -> str:
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


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
    for end in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=":
        for other in (token[:-1] + end, token + end):
            if other != token:
                with pytest.raises(ValueError, match="not a page token of this query"):
                    decode_page_token(SECRET, b"scope", other)
    for length in range(len(token)):
        with pytest.raises(ValueError, match="not a page token of this query"):
            decode_page_token(SECRET, b"scope", token[:length])
