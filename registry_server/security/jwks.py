"""``KeySet``: the public keys of a token issuer, loaded in the background from a file or URL."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from registry_server.errors import IssuerUnavailable
from registry_server.runtime.tasks import cancel
from registry_server.security.policy import JwtIssuer

REFRESH_SECONDS: Final = 300.0
"""Age at which keys are loaded again."""
MAX_STALE_SECONDS: Final = 24 * 60 * 60.0
"""Age up to which keys are used while loading fails, and so the longest time that a withdrawn key stays valid."""
MIN_RELOAD_INTERVAL_SECONDS: Final = 5.0
"""Shortest time between two loads: any caller can trigger one with a token that has an unknown key id."""
MAX_WAIT_SECONDS: Final = 3.0
"""How long a caller waits for the key of its token."""
MAX_WAITING: Final = 1_000
"""Callers that wait for keys at the same time, so that unknown key ids cannot occupy all places of calls in flight."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=5.0)
_MAX_BYTES: Final = 1 << 20
_MAX_KEYS: Final = 1_000

# RFC 7518, 3.3 requires 2,048 bits. The cost of verifying grows with the square of the modulus and with the exponent.
_RSA_BITS: Final = range(2048, 8192 + 1)
_MAX_RSA_EXPONENT: Final = 1 << 32
_MAX_MEMBER_CHARACTERS: Final = 2_048
_RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
_CURVES: Final = {
    ("EC", "P-256"): "ES256",
    ("EC", "P-384"): "ES384",
    ("EC", "P-521"): "ES512",
    ("OKP", "Ed25519"): "EdDSA",
    ("OKP", "Ed448"): "EdDSA",
}
_PUBLIC_MEMBERS: Final = ("kty", "crv", "n", "e", "x", "y")
_SECRET_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

log = structlog.get_logger(__name__)


class IssuerKey(NamedTuple):
    """A public key, and the algorithms of the signatures that it may verify."""

    public_key: Any
    algorithms: frozenset[str]


Keys = Mapping[str | None, IssuerKey]
"""Keys by their id."""


def source_of(issuer: JwtIssuer) -> tuple[str, str | None, str | None]:
    """Return where the keys of an issuer come from; a reloaded policy keeps the keys if this is unchanged."""
    return issuer.issuer, issuer.jwks_url, issuer.jwks_file


class KeySet:
    """The keys of one issuer.

    One task at a time loads them. Callers whose key is known never wait for it.
    """

    def __init__(self, issuer: JwtIssuer, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.name = issuer.name
        """Name of the issuer in the policy."""
        self.on_withdrawal: Callable[[], object] = lambda: None
        """Called when a load has removed or replaced a key: credentials that it verified are no longer valid."""
        self._monotonic = monotonic
        self._url, self._file = issuer.jwks_url, Path(issuer.jwks_file or "")
        self._keys: Keys = {}
        self._loaded_at = self._tried_at = float("-inf")
        self._failed = False
        self._loading: asyncio.Task[None] | None = None
        self._requested = False
        self._waiting = 0

    def find(self, kid: str | None) -> IssuerKey | None:
        """Return the key with an id if it is known; without an id, the only key of the set."""
        if self._monotonic() - self._loaded_at > MAX_STALE_SECONDS:
            return None
        if kid is not None:
            return self._keys.get(kid)
        return next(iter(self._keys.values())) if len(self._keys) == 1 else None

    async def refresh(self, kid: str | None) -> None:
        """Start loading keys that are due; wait for it only if the key with this id is not known.

        Raises:
            IssuerUnavailable: The key is not known, and whether the issuer has it cannot be determined at present.
        """
        if self.find(kid) is not None:
            if self._monotonic() - self._loaded_at > REFRESH_SECONDS:
                self._load_if_due()
            return
        self._load_if_due()
        if self._loading is not None:
            await self._wait(self._loading)
        if self.find(kid) is None and (self._failed or self._loading is not None):
            raise IssuerUnavailable(self.name)

    def reload(self) -> None:
        """Load the keys again now; the current ones remain in use until that succeeds."""
        self._requested = True
        if self._loading is None:
            self._loading = asyncio.create_task(self._load_requested(), name="issuer-keys")

    @property
    def is_loading(self) -> bool:
        """Whether a load is in flight."""
        return self._loading is not None

    async def close(self) -> None:
        """Cancel a load in flight."""
        if self._loading is not None:
            await cancel([self._loading])

    def _load_if_due(self) -> None:
        if self._loading is None and self._monotonic() - self._tried_at >= MIN_RELOAD_INTERVAL_SECONDS:
            self.reload()

    async def _wait(self, loading: asyncio.Task[None]) -> None:
        if self._waiting >= MAX_WAITING:
            raise IssuerUnavailable(self.name)
        self._waiting += 1
        try:
            await asyncio.wait({loading}, timeout=MAX_WAIT_SECONDS)
        finally:
            self._waiting -= 1

    async def _load_requested(self) -> None:
        try:
            while self._requested:
                self._requested = False
                await self._load()
        finally:
            self._loading = None

    async def _load(self) -> None:
        """Load the keys; keep the current ones on failure."""
        try:
            raw = await (_fetch(self._url) if self._url else asyncio.to_thread(self._read_file))
            keys = await asyncio.to_thread(_parsed, raw)
        except Exception as error:  # noqa: BLE001 - whatever the source sends, the current keys remain in use
            self._failed = True
            text = str(error)[:300] or type(error).__name__
            log.warning("loading issuer keys failed", issuer=self.name, error=text)
        else:
            before, self._keys = self._keys, keys
            self._loaded_at, self._failed = self._monotonic(), False
            if keys != before:
                log.info("issuer keys changed", issuer=self.name, keys=len(keys))
            if any(keys.get(kid) != key for kid, key in before.items()):
                self.on_withdrawal()
        finally:
            self._tried_at = self._monotonic()

    def _read_file(self) -> bytes:
        with self._file.open("rb") as file:
            return file.read(_MAX_BYTES + 1)


def _parsed(raw: bytes) -> Keys:
    """Return the usable keys of a JWK Set (RFC 7517); others are ignored.

    Raises:
        ValueError: The document is not a JWK Set, or contains no usable key.
    """
    if len(raw) > _MAX_BYTES:
        raise ValueError(f"the document is larger than {_MAX_BYTES} bytes")
    try:
        document: Any = json.loads(raw)
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise ValueError("the document is not a JWK Set")  # noqa: TRY004 - wrong data, not a wrong argument
    if len(entries) > _MAX_KEYS:
        raise ValueError(f"the document contains more than {_MAX_KEYS} keys")
    keys: dict[str | None, IssuerKey] = {}
    for entry in entries:
        key = _issuer_key(entry) if isinstance(entry, dict) else None
        if key is not None:
            keys[entry.get("kid")] = key
    if not keys:
        raise ValueError("the document contains no key for verifying signatures")
    return keys


def _issuer_key(entry: Mapping[str, Any]) -> IssuerKey | None:
    """Return the key of an entry; ``None`` if it is not a key for verifying signatures, or not a sound one."""
    members = {name: entry[name] for name in _PUBLIC_MEMBERS if name in entry}
    is_text = all(isinstance(value, str) and len(value) <= _MAX_MEMBER_CHARACTERS for value in members.values())
    if not (is_text and _may_verify(entry)):
        return None
    kind, curve, algorithm = members.get("kty", ""), members.get("crv", ""), entry.get("alg")
    possible = _RSA_ALGORITHMS if kind == "RSA" else frozenset(filter(None, [_CURVES.get((kind, curve))]))
    algorithms = possible if algorithm is None else frozenset(each for each in possible if each == algorithm)
    try:
        key = jwt.PyJWK(members, next(iter(algorithms))).key if algorithms else None
    except Exception:  # noqa: BLE001 - such as a point that is not on the curve; the libraries raise many types
        return None
    if isinstance(key, RSAPublicKey) and (key.key_size not in _RSA_BITS or key.public_numbers().e > _MAX_RSA_EXPONENT):
        return None
    return IssuerKey(key, algorithms) if key else None


def _may_verify(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry is a public key for signatures; with a published secret anyone can create tokens."""
    operations = entry.get("key_ops")
    return (
        isinstance(entry.get("kid"), str | None)
        and entry.get("use") in (None, "sig")
        and (operations is None or (isinstance(operations, list) and "verify" in operations))
        and _SECRET_MEMBERS.isdisjoint(entry)
    )


async def _fetch(url: str) -> bytes:
    async with (
        aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False) as session,
        # A redirect could lead to a URL that the setting would not allow. A small compressed body could be a huge one.
        session.get(url, allow_redirects=False, headers={"Accept-Encoding": "identity"}) as response,
    ):
        if response.status != 200:  # noqa: PLR2004 - HTTP OK
            raise ValueError(f"HTTP status {response.status}")
        raw = b""
        while len(raw) <= _MAX_BYTES and (chunk := await response.content.read(_MAX_BYTES + 1 - len(raw))):
            raw += chunk
    return raw
