"""Opaque tokens that clients send back: watch cursors and page tokens.

Page tokens are authenticated. Cursors are not: a forged one starts no watch that an old one could not start, and one of
a later revision waits in a place of the caller's share.
"""

import base64
import hashlib
import hmac
import re
from typing import NamedTuple

# Kinds of cursors.
_RESUMABLE = "r"
_IN_SNAPSHOT = "s"
_MAX_TOKEN_LENGTH = 1024
_CODE_BYTES = 16
_MAX_KEY_BYTES = 64  # of BLAKE2b
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


def encode_page_token(secret: bytes, scope: bytes, last: str) -> str:
    """Encode the token of the page after the name ``last``.

    Args:
        secret: Secret of the registry, which all of its processes share.
        scope: The query, for which alone the token is valid.
        last: Last name of the page before.
    """
    return _encode(_authenticate(secret, scope, last.encode()) + last.encode())


def decode_page_token(secret: bytes, scope: bytes, token: str) -> str:
    """Return the last name of the previous page.

    Raises:
        ValueError: The token is malformed, belongs to another scope, or was not issued by this registry.
    """
    plain = _decode(token)
    code, last = plain[:_CODE_BYTES], plain[_CODE_BYTES:]
    if not hmac.compare_digest(code, _authenticate(secret, scope, last)):
        raise ValueError("is not a page token of this query; repeat the query without one")
    return last.decode()


def _authenticate(secret: bytes, scope: bytes, last: bytes) -> bytes:
    text = b"%d:%b%b" % (len(scope), scope, last)
    return hashlib.blake2b(text, digest_size=_CODE_BYTES, key=secret[:_MAX_KEY_BYTES]).digest()


def _encode(plain: bytes) -> str:
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    """Return the decoded bytes, or nothing if the text is too long, not base64 or not what ``_encode`` returns."""
    if len(text) > _MAX_TOKEN_LENGTH:
        return b""
    try:
        plain = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:  # also UnicodeEncodeError and binascii.Error
        return b""
    return plain if _encode(plain) == text else b""  # base64 ignores the last bits of an incomplete group
