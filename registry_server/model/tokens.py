"""Page tokens, which are opaque and authenticated."""

import hashlib
import hmac

from ossa_common.cursors import token_bytes, token_text

_CODE_BYTES = 16
_MAX_KEY_BYTES = 64  # of BLAKE2b


def encode_page_token(secret: bytes, scope: bytes, last: str) -> str:
    """Encode the token of the page after the name ``last``.

    Args:
        secret: Secret of the registry, which all of its processes share.
        scope: The query, for which alone the token is valid.
        last: Last name of the page before.
    """
    return token_text(_authenticate(secret, scope, last.encode()) + last.encode())


def decode_page_token(secret: bytes, scope: bytes, token: str) -> str:
    """Return the last name of the previous page.

    Raises:
        ValueError: The token is malformed, belongs to another scope, or was not issued by this registry.
    """
    plain = token_bytes(token)
    code, last = plain[:_CODE_BYTES], plain[_CODE_BYTES:]
    if not hmac.compare_digest(code, _authenticate(secret, scope, last)):
        raise ValueError("is not a page token of this query; repeat the query without one")
    return last.decode()


def _authenticate(secret: bytes, scope: bytes, last: bytes) -> bytes:
    text = b"%d:%b%b" % (len(scope), scope, last)
    return hashlib.blake2b(text, digest_size=_CODE_BYTES, key=secret[:_MAX_KEY_BYTES]).digest()
