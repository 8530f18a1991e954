"""API keys: generation, and the hash that a policy file contains.

A key is 256 random bits, which cannot be guessed from its digest, so a plain SHA-256 is sufficient: slow functions such
as bcrypt protect passwords that people choose. See docs/adr/0021.
"""

import hashlib
import re
import secrets
from typing import Final

PREFIX: Final = "ossa_"
"""Prefix of every generated key, by which scanners for leaked secrets recognise it."""

_HASH: Final = re.compile(r"sha256:([0-9a-f]{64})")


def new_key() -> str:
    """Return a new key: 256 random bits as text."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(credential: str) -> bytes:
    """Return the SHA-256 of a credential, which is stored and compared in its place."""
    return hashlib.sha256(credential.encode("utf-8", "surrogateescape")).digest()


def hash_text(key: str) -> str:
    """Return the hash of a key as a policy file contains it."""
    return f"sha256:{digest_of(key).hex()}"


def parse_hash(text: str) -> bytes | None:
    """Return the digest in ``sha256:HEX``; ``None`` if the text has another form."""
    match = _HASH.fullmatch(text)
    return bytes.fromhex(match[1]) if match else None
