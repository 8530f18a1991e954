"""Cursors of watches, opaque to other clients, and the text form of all tokens that clients send back.

Cursors are not authenticated: a forged one starts no watch that an old one could not start, and one of a later revision
waits in a place of the caller's share.
"""

import base64
import re
from typing import NamedTuple

# Kinds of cursors.
_RESUMABLE = "r"
_IN_SNAPSHOT = "s"
_MAX_TOKEN_LENGTH = 1024
# int() alone would accept signs, spaces and underscores too.
_CURSOR = re.compile(rf"([{_RESUMABLE}{_IN_SNAPSHOT}])([0-9a-f]{{1,16}})\.([!-}}]+)(?:~([0-9a-f]+))?")


class Cursor(NamedTuple):
    """Position of a watch."""

    epoch: str
    revision: int
    resumable: bool = True
    """False inside a snapshot: resuming there would skip the rest of the snapshot."""
    scope: str = ""
    """Identifies what the caller sees of the registry; empty if it sees everything."""


def encode_cursor(cursor: Cursor) -> str:
    """Encode a cursor as the text that clients receive."""
    kind = _RESUMABLE if cursor.resumable else _IN_SNAPSHOT
    scope = f"~{cursor.scope}" if cursor.scope else ""
    return token_text(f"{kind}{cursor.revision:x}.{cursor.epoch}{scope}".encode())


def decode_cursor(text: str) -> Cursor:
    """Decode a cursor.

    Raises:
        ValueError: The text is not a cursor.
    """
    match = _CURSOR.fullmatch(token_bytes(text).decode("ascii", "replace"))
    if match is None:
        raise ValueError("is not a cursor of this registry")
    kind, revision, epoch, scope = match.groups("")
    return Cursor(epoch, int(revision, 16), kind == _RESUMABLE, scope)


def token_text(plain: bytes) -> str:
    """Return bytes as text that needs no escaping in URLs and headers."""
    return base64.urlsafe_b64encode(plain).rstrip(b"=").decode()


def token_bytes(text: str) -> bytes:
    """Return the decoded bytes, or nothing if the text is too long, not base64 or not what ``token_text`` returns."""
    if len(text) > _MAX_TOKEN_LENGTH:
        return b""
    try:
        plain = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:  # also UnicodeEncodeError and binascii.Error
        return b""
    return plain if token_text(plain) == text else b""  # base64 ignores the last bits of an incomplete group
