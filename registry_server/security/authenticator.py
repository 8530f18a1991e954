"""``Authenticator``: maps credentials to an ``Identity`` and caches the result."""

import hmac
import time
from typing import Final, NamedTuple

from registry_server.security.identity import ANONYMOUS, Identity, Limits, Role
from registry_server.security.jwt_tokens import JwtVerifier, Refused
from registry_server.security.keys import digest_of, parse_hash
from registry_server.security.patterns import matches
from registry_server.security.policy import ApiKey, Policy, granted, role_of

MAX_CACHED_CREDENTIALS: Final = 10_000
"""Verified credentials that are not verified again."""
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

    def __init__(self, policy: Policy, general: Limits) -> None:
        """Index the policy.

        Args:
            policy: The policy.
            general: Limits of identities for which the policy sets none.
        """
        self._general = general
        self._anonymous = Identity(ANONYMOUS, role_of(policy.anonymous), limits=general)
        self._keys: dict[bytes, tuple[bytes, ApiKey | None]] = {
            digest: (digest, key) for key in policy.api_keys for text in key.hashes if (digest := parse_hash(text))
        }
        self._jwt = JwtVerifier(policy.jwt, general)
        self._certificates = policy.certificates
        self._cache: dict[object, Identity] = {}

    def cached_identity(self, credentials: Credentials) -> Identity | None:
        """Return the identity of credentials that were verified before and have not expired."""
        identity = self._cache.get(_cache_key(credentials))
        if identity is None or (identity.expires is not None and identity.expires <= time.time()):
            return None
        return identity

    async def verify(self, credentials: Credentials) -> Identity:
        """Verify credentials and cache their identity.

        Raises:
            Unauthenticated: The credentials are unknown, not valid or expired.
            IssuerUnavailable: The keys of the token's issuer are not available.
        """
        authorization, api_key, certificate = credentials
        if authorization and api_key:
            raise Refused("two credentials", "send one credential, not two")
        if authorization:
            scheme, _, credential = authorization.partition(" ")
            credential = credential.strip()
            if scheme.lower() != "bearer" or not credential:
                raise Refused("not a bearer token", "authorization must be Bearer and a key or token")
            jwt_like = credential.count(".") == 2  # noqa: PLR2004 - header, claims and signature
            identity = await self._jwt.identity(credential) if jwt_like else self._of_key(credential)
        elif api_key:
            identity = self._of_key(api_key)
        elif certificate:
            identity = self._of_certificate(certificate)
        else:
            identity = self._anonymous
        if identity.expires is not None and identity.expires <= time.time():
            raise Refused("expired", "the credential has expired")
        while len(self._cache) >= MAX_CACHED_CREDENTIALS:
            del self._cache[next(iter(self._cache))]
        self._cache[_cache_key(credentials)] = identity
        return identity

    def _of_key(self, text: str) -> Identity:
        if len(text) > _MAX_KEY_CHARACTERS:
            raise Refused("key too long")
        digest = digest_of(text)
        # An attacker cannot choose a SHA-256, so the duration of the lookup reveals nothing. The deciding comparison
        # takes constant time.
        known, key = self._keys.get(digest, (bytes(len(digest)), None))
        if not hmac.compare_digest(known, digest) or key is None:
            raise Refused("unknown key")
        expires = key.expires.timestamp() if key.expires else None
        return granted(key, key.name, "api-key", key.name, self._general, expires)

    def _of_certificate(self, names: CertificateNames) -> Identity:
        for rule in self._certificates:
            wanted, pattern = rule.wanted
            for kind, name in names:
                if kind == wanted and matches(pattern, name):
                    return granted(rule, f"certificate:{name}", "certificate", name, self._general, None)
        if self._anonymous.role is Role.NONE:
            raise Refused("certificate without a rule", "the policy grants nothing to this certificate")
        return self._anonymous


def _cache_key(credentials: Credentials) -> object:
    """Return the cache key of credentials, which does not contain them."""
    authorization, api_key, certificate = credentials
    if not api_key:
        return digest_of(authorization) if authorization else certificate
    return digest_of(f"{authorization}\n{api_key}")  # unambiguous: headers contain no newline
