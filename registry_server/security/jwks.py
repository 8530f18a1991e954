"""``KeySet``: the public keys of an issuer of tokens, from a file or a URL, kept and read again when that may help."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import jwt
import structlog

from registry_server.errors import IssuerUnavailable
from registry_server.security.policy import JwtIssuer

FRESH: Final = 300.0
"""Seconds for which keys from a URL are taken without asking again."""
STALE: Final = 24 * 60 * 60.0
"""Seconds for which they are taken while the URL does not answer: as long as a key that was withdrawn may live on."""
BETWEEN: Final = 5.0
"""Least seconds between two reads for the sake of an unknown key: whoever sends such tokens must not steer us."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)
_LARGEST: Final = 1 << 20

log = structlog.get_logger(__name__)


class _Source(Protocol):
    async def read(self) -> bytes: ...


class KeySet:
    """Keys by their id."""

    def __init__(self, issuer: JwtIssuer) -> None:
        self._name = issuer.name
        self._source: _Source = _Url(issuer.jwks_url) if issuer.jwks_url else _File(Path(issuer.jwks_file or ""))
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._read_at = self._tried_at = float("-inf")
        self._turn = asyncio.Lock()

    async def key(self, kid: str | None) -> jwt.PyJWK | None:
        """Gives the key of an id; without one, the only key that there is.

        Raises:
            IssuerUnavailable: There are no keys, because they cannot be read.
        """
        now = time.monotonic()
        if now - self._read_at > FRESH or self._find(kid) is None:
            await self._read_again()
        if time.monotonic() - self._read_at > STALE:
            raise IssuerUnavailable(self._name)
        return self._find(kid)

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is not None:
            return self._keys.get(kid)
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    async def _read_again(self) -> None:
        """Reads the keys, unless somebody has just done so; keeps the old ones if that fails."""
        async with self._turn:
            now = time.monotonic()
            if now - self._tried_at < BETWEEN:
                return
            self._tried_at = now
            try:
                self._keys = _parsed(await self._source.read())
            except (OSError, aiohttp.ClientError, TimeoutError, ValueError, jwt.PyJWTError) as error:
                log.warning("keys of an issuer cannot be read", issuer=self._name, error=str(error)[:300])
            else:
                self._read_at = time.monotonic()


def _parsed(raw: bytes) -> dict[str | None, jwt.PyJWK]:
    document: Any = json.loads(raw)
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("is not a JWK Set")  # noqa: TRY004 - of data, not of our code
    keys: dict[str | None, jwt.PyJWK] = {}
    for entry in document["keys"]:
        # A shared secret in a set that is public would let everybody make tokens.
        if not isinstance(entry, dict) or entry.get("kty") not in {"RSA", "EC", "OKP"} or entry.get("use") == "enc":
            continue
        try:
            key = jwt.PyJWK(entry)
        except jwt.PyJWTError:  # of a kind that is not known here: others may be
            continue
        keys[key.key_id] = key
    if not keys:
        raise ValueError("has no key to verify signatures with")
    return keys


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path

    async def read(self) -> bytes:
        return await asyncio.to_thread(self._path.read_bytes)


class _Url:
    def __init__(self, url: str) -> None:
        self._url = url

    async def read(self) -> bytes:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            # A redirect could lead to where the setting would not be allowed to.
            session.get(self._url, allow_redirects=False) as response,
        ):
            if response.status != 200:  # noqa: PLR2004 - the one that has the keys
                raise ValueError(f"answers {response.status}")
            raw = await response.content.read(_LARGEST + 1)
            while len(raw) <= _LARGEST and (more := await response.content.read(_LARGEST + 1 - len(raw))):
                raw += more
        if len(raw) > _LARGEST:
            raise ValueError("is too large")
        return raw
