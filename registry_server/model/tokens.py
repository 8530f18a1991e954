"""Opaque tokens that clients keep for us: cursors of watches, and page tokens."""

import base64
import hashlib
import re
from typing import NamedTuple

_RESUMABLE = "r"
_WITHIN_SNAPSHOT = "s"
_LONGEST = 1024
_DIGEST_SIZE = 8
# Not left to int(): that takes signs, spaces and underscores too.
_CURSOR = re.compile(rf"([{_RESUMABLE}{_WITHIN_SNAPSHOT}])([0-9a-f]{{1,16}})\.([!-~]+)")


class Cursor(NamedTuple):
    """Where a watch stands."""

    epoch: str
    revision: int
    resumable: bool = True
    """False within a snapshot: going on from there would skip the rest of it."""


def encode_cursor(cursor: Cursor) -> str:
    """Makes the text that clients get."""
    kind = _RESUMABLE if cursor.resumable else _WITHIN_SNAPSHOT
    return _encode(f"{kind}{cursor.revision:x}.{cursor.epoch}".encode())


def decode_cursor(text: str) -> Cursor:
    """Reads a cursor back.

    Raises:
        ValueError: This server never made it.
    """
    match = _CURSOR.fullmatch(_decode(text).decode("ascii", "replace"))
    if match is None:
        raise ValueError("is not a cursor of this registry")
    kind, revision, epoch = match.groups()
    return Cursor(epoch, int(revision, 16), resumable=kind == _RESUMABLE)


def encode_page_token(scope: bytes, last: str) -> str:
    """Makes the token of the page after ``last``, good only for the same ``scope`` (what was asked for)."""
    return _encode(_digest(scope) + last.encode())


def decode_page_token(scope: bytes, token: str) -> str:
    """Reads the name after which the page begins.

    Raises:
        ValueError: The token is not of this scope, or no token at all.
    """
    plain = _decode(token)
    digest, last = plain[:_DIGEST_SIZE], plain[_DIGEST_SIZE:]
    if digest != _digest(scope) or not last.isascii():
        raise ValueError("is not a token of this query; repeat it without one")
    return last.decode()


def _digest(scope: bytes) -> bytes:
    return hashlib.blake2b(scope, digest_size=_DIGEST_SIZE).digest()


def _encode(plain: bytes) -> str:
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Gives nothing for what is no base64, or too long: then it is none of our tokens either."""
    if len(text) > _LONGEST:
        return b""
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:  # also UnicodeEncodeError and binascii.Error
        return b""
