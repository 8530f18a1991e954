"""API keys: how they are made, and the form in which a policy file has them.

A key is 256 random bits, so nobody can guess one from its digest, and a plain SHA-256 keeps it: a slow function such as
bcrypt protects what people make up. See docs/adr/0021.
"""

import hashlib
import re
import secrets
from typing import Final

PREFIX: Final = "ossa_"
"""Begins every key that is made here: scanners for leaked secrets find it by that."""

_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")


def new_key() -> str:
    """Makes a key: 256 random bits as text."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(credential: str) -> bytes:
    """SHA-256 of a credential: under this it is kept and compared, never as it is."""
    return hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest()


def hash_text(key: str) -> str:
    """What a policy file has of a key."""
    return f"sha256:{digest_of(key).hex()}"


def parse_hash(text: str) -> bytes | None:
    """The digest in ``sha256:HEX``; ``None`` if the text has another form."""
    match = _HASH.fullmatch(text)
    return bytes.fromhex(match[1]) if match else None
