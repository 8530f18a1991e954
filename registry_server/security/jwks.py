"""``KeySet``: the public keys of a token issuer, loaded from a file or URL and refreshed when needed."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt
import structlog

from registry_server.errors import IssuerUnavailable
from registry_server.security.policy import JwtIssuer

REFRESH_SECONDS: Final = 300.0
"""Age at which keys are loaded again."""
MAX_STALE_SECONDS: Final = 24 * 60 * 60.0
"""Age up to which keys are used while loading fails, and so the longest time that a withdrawn key stays valid."""
MIN_RELOAD_INTERVAL_SECONDS: Final = 5.0
"""Shortest time between two loads: any caller can trigger one with a token that has an unknown key id."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)
_MAX_BYTES: Final = 1 << 20

log = structlog.get_logger(__name__)


class KeySet:
    """The keys of one issuer by their id."""

    def __init__(self, issuer: JwtIssuer, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._name = issuer.name
        self._url, self._file = issuer.jwks_url, Path(issuer.jwks_file or "")
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._loaded_at = self._tried_at = float("-inf")
        self._reload_lock = asyncio.Lock()

    async def key(self, kid: str | None) -> jwt.PyJWK | None:
        """Return the key with an id; without an id, the only key of the set.

        Raises:
            IssuerUnavailable: No keys are available because loading them fails.
        """
        now = self._monotonic()
        if now - self._loaded_at > REFRESH_SECONDS or self._find(kid) is None:
            await self._reload()
        if self._monotonic() - self._loaded_at > MAX_STALE_SECONDS:
            raise IssuerUnavailable(self._name)
        return self._find(kid)

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is not None:
            return self._keys.get(kid)
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    async def _reload(self) -> None:
        """Load the keys, unless another task has just done so; keep the current ones on failure."""
        async with self._reload_lock:
            now = self._monotonic()
            if now - self._tried_at < MIN_RELOAD_INTERVAL_SECONDS:
                return
            self._tried_at = now
            try:
                raw = await (_fetch(self._url) if self._url else asyncio.to_thread(self._file.read_bytes))
                self._keys = _parse_jwks(raw)
            except (OSError, aiohttp.ClientError, TimeoutError, ValueError, jwt.PyJWTError) as error:
                log.warning("loading issuer keys failed", issuer=self._name, error=str(error)[:300])
            else:
                self._loaded_at = self._monotonic()


def _parse_jwks(raw: bytes) -> dict[str | None, jwt.PyJWK]:
    document: Any = json.loads(raw)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("the document is not a JWK Set")  # noqa: TRY004 - wrong data, not a wrong argument
    keys: dict[str | None, jwt.PyJWK] = {}
    for entry in document["keys"]:
        # A shared secret in a public key set would let anyone create tokens.
        if not isinstance(entry, dict) or entry.get("kty") not in {"RSA", "EC", "OKP"} or entry.get("use") == "enc":
            continue
        try:
            key = jwt.PyJWK(entry)
        except jwt.PyJWTError:  # an unsupported kind of key; others in the set may be usable
            continue
        keys[key.key_id] = key
    if not keys:
        raise ValueError("the document contains no key for verifying signatures")
    return keys


async def _fetch(url: str) -> bytes:
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT) as session,
        # A redirect could lead to a URL that the setting would not allow.
        session.get(url, allow_redirects=False) as response,
    ):
        if response.status != 200:  # noqa: PLR2004 - HTTP OK
            raise ValueError(f"HTTP status {response.status}")
        raw = await response.content.read(_MAX_BYTES + 1)
        while len(raw) <= _MAX_BYTES and (chunk := await response.content.read(_MAX_BYTES + 1 - len(raw))):
            raw += chunk
    if len(raw) > _MAX_BYTES:
        raise ValueError(f"the document is larger than {_MAX_BYTES} bytes")
    return raw
