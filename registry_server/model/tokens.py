"""Opaque tokens that clients send back: watch cursors and page tokens."""

import base64
import hashlib
import re
from typing import NamedTuple

# Kinds of cursors.
_RESUMABLE = "r"
_IN_SNAPSHOT = "s"
_MAX_TOKEN_LENGTH = 1024
_DIGEST_BYTES = 8
# int() alone would accept signs, spaces and underscores too.
_CURSOR = re.compile(rf"([{_RESUMABLE}{_IN_SNAPSHOT}])([0-9a-f]{{1,16}})\.([!-~]+)")


class Cursor(NamedTuple):
    """Position of a watch."""

    epoch: str
    revision: int
    resumable: bool = True
    """False inside a snapshot: resuming there would skip the rest of the snapshot."""


def encode_cursor(cursor: Cursor) -> str:
    """Encode a cursor as the text that clients receive."""
    kind = _RESUMABLE if cursor.resumable else _IN_SNAPSHOT
    return _encode(f"{kind}{cursor.revision:x}.{cursor.epoch}".encode())


def decode_cursor(text: str) -> Cursor:
    """Decode a cursor.

    Raises:
        ValueError: The text is not a cursor.
    """
    match = _CURSOR.fullmatch(_decode(text).decode("ascii", "replace"))
    if match is None:
        raise ValueError("is not a cursor of this registry")
    kind, revision, epoch = match.groups()
    return Cursor(epoch, int(revision, 16), resumable=kind == _RESUMABLE)


def encode_page_token(scope: bytes, last: str) -> str:
    """Encode the token of the page after the name ``last``. It is valid only for the same ``scope``, the query."""
    return _encode(_digest(scope) + last.encode())


def decode_page_token(scope: bytes, token: str) -> str:
    """Return the last name of the previous page.

    Raises:
        ValueError: The token is malformed or belongs to another scope.
    """
    plain = _decode(token)
    digest, last = plain[:_DIGEST_BYTES], plain[_DIGEST_BYTES:]
    if digest != _digest(scope) or not last.isascii():
        raise ValueError("is not a page token of this query; repeat the query without one")
    return last.decode()


def _digest(scope: bytes) -> bytes:
    return hashlib.blake2b(scope, digest_size=_DIGEST_BYTES).digest()


def _encode(plain: bytes) -> str:
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Return the decoded bytes, or nothing if the text is too long or not base64."""
    if len(text) > _MAX_TOKEN_LENGTH:
        return b""
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:  # also UnicodeEncodeError and binascii.Error
        return b""
