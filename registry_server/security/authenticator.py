"""``Authenticator``: maps credentials to an ``Identity`` and caches the result."""

import hmac
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cachetools import LRUCache

from registry_server.security.identity import ANONYMOUS, Identity, Limits, Role
from registry_server.security.jwt_tokens import CredentialRefused, JwtVerifier
from registry_server.security.keys import digest_of, parse_hash
from registry_server.security.patterns import matches
from registry_server.security.policy import ApiKey, Policy, granted_identity

MAX_CACHED_CREDENTIALS: Final = 10_000
"""Verified credentials to keep; the least recently used are evicted first."""
_MAX_KEY_CHARACTERS: Final = 512

CertificateNames = tuple[tuple[str, str], ...]
"""Names of a verified certificate: kind (``uri``, ``dns``, ``common_name``) and text."""


class Credentials(NamedTuple):
    """Credentials of a caller, from gRPC metadata or HTTP headers."""

    authorization: str = ""
    """Value of ``authorization``."""
    api_key: str = ""
    """Value of ``x-api-key``."""
    certificate: CertificateNames = ()
    """Names in the client certificate of the connection."""

    def __repr__(self) -> str:
        return f"Credentials({'credential, ' if self.authorization or self.api_key else ''}{self.certificate!r})"


class Authenticator:
    """Authenticates callers by one policy; a reloaded policy gets a new authenticator."""

    def __init__(
        self,
        policy: Policy,
        default_limits: Limits,
        *,
        previous: "Authenticator | None" = None,
        on_withdrawal: Callable[[], object] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Index the policy.

        Args:
            policy: The policy.
            default_limits: Limits of identities for which the policy sets none.
            previous: The authenticator that this one replaces; it must not be used again.
            on_withdrawal: Called when identities that were returned may no longer be valid, because an issuer has
                withdrawn a key.
            monotonic: Clock for the age of the issuers' keys, in seconds.
        """
        self._default_limits = default_limits
        anonymous_sees = policy.sees.anonymous.visibility(()) if policy.sees.anonymous else None
        role = Role[policy.anonymous.upper()]
        self._anonymous = Identity(ANONYMOUS, role, limits=default_limits, visibility=anonymous_sees)
        self.restricts: bool = policy.restricts()
        """Whether any caller sees only some services."""
        self._keys: dict[bytes, tuple[bytes, ApiKey | None]] = {
            digest: (digest, key) for key in policy.api_keys for text in key.hashes if (digest := parse_hash(text))
        }
        self._on_withdrawal = on_withdrawal
        self.tokens: JwtVerifier = JwtVerifier(
            policy.jwt,
            default_limits,
            on_withdrawal=self._forget_identities,
            previous=previous.tokens if previous else None,
            monotonic=monotonic,
        )
        self._certificates = policy.certificates
        self._cache: LRUCache[object, Identity] = LRUCache(MAX_CACHED_CREDENTIALS)

    def load_keys(self) -> None:
        """Load the keys of all issuers in the background, before the first callers need them and after a reload."""
        self.tokens.load_keys()

    async def close(self) -> None:
        """Cancel background work."""
        await self.tokens.close()

    def cached_identity(self, credentials: Credentials) -> Identity | None:
        """Return the cached identity of credentials that were verified and have not expired."""
        identity = self._cache.get(_cache_key(credentials))
        if identity is None or (identity.expires is not None and identity.expires <= time.time()):
            return None
        return identity

    async def verify(self, credentials: Credentials, address: str | None = None) -> Identity:
        """Verify credentials and cache their identity.

        Args:
            credentials: The credentials.
            address: Address of the caller, by which turns to verify tokens are shared; ``None`` = the registry itself
                checks credentials again, which waits for no caller.

        Raises:
            Unauthenticated: The credentials are unknown, not valid or expired.
            IssuerUnavailable: The keys of the token's issuer are not available.
            Overloaded: Too many tokens wait for verification.
        """
        authorization, api_key, certificate = credentials
        if authorization and api_key:
            raise CredentialRefused("two credentials", "send one credential, not two")
        if authorization:
            scheme, _, credential = authorization.partition(" ")
            credential = credential.strip()
            if scheme.lower() != "bearer" or not credential:
                raise CredentialRefused("not a bearer token", "authorization must be Bearer followed by a key or token")
            # Other spellings of the header share this entry: one token must not evict the entries of other callers.
            credentials = Credentials(f"Bearer {credential}")
            if credentials.authorization != authorization and (cached := self.cached_identity(credentials)):
                return cached
            jwt_like = credential.count(".") == 2  # noqa: PLR2004 - header, claims and signature
            identity = (
                await self.tokens.verify_token(credential, address) if jwt_like else self._identify_key(credential)
            )
        elif api_key:
            identity = self._identify_key(api_key)
        elif certificate:
            identity = self._identify_certificate(certificate)
        else:
            identity = self._anonymous
        if identity.expires is not None and identity.expires <= time.time():
            raise CredentialRefused("expired", "the credential has expired")
        self._cache[_cache_key(credentials)] = identity
        return identity

    def _forget_identities(self) -> None:
        self._cache.clear()
        self._on_withdrawal()

    def _identify_key(self, text: str) -> Identity:
        if len(text) > _MAX_KEY_CHARACTERS:
            raise CredentialRefused("key too long")
        digest = digest_of(text)
        # An attacker cannot choose a SHA-256, so the duration of the lookup reveals nothing. The deciding comparison
        # takes constant time.
        known, key = self._keys.get(digest, (bytes(len(digest)), None))
        if not hmac.compare_digest(known, digest) or key is None:
            raise CredentialRefused("unknown key")
        expires = key.expires.timestamp() if key.expires else None
        return granted_identity(key, key.name, "api-key", key.name, self._default_limits, expires)

    def _identify_certificate(self, names: CertificateNames) -> Identity:
        for rule in self._certificates:
            kind_of_rule, pattern = rule.name_pattern
            for kind, name in names:
                if kind == kind_of_rule and name.isprintable() and matches(pattern, name):
                    return granted_identity(
                        rule, f"certificate:{name}", "certificate", name, self._default_limits, None
                    )
        if self._anonymous.role is Role.NONE:
            raise CredentialRefused("certificate without a rule", "the policy grants nothing to this certificate")
        return self._anonymous


def _cache_key(credentials: Credentials) -> object:
    """Return the cache key of credentials; it contains no secret."""
    authorization, api_key, certificate = credentials
    if not api_key:
        return digest_of(authorization) if authorization else certificate
    return digest_of(f"{authorization}\n{api_key}")  # unambiguous: headers contain no newline
