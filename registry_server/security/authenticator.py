"""``Authenticator``: turns what a caller shows into an ``Identity``, once, and remembers it."""

import hmac
import time
from typing import Final, NamedTuple

from registry_server.security.identity import ANONYMOUS, Identity, Limits, Role
from registry_server.security.jwt_tokens import JwtVerifier, Refused
from registry_server.security.keys import digest_of, parse_hash
from registry_server.security.patterns import matches
from registry_server.security.policy import ApiKey, Policy, granted, role_of

MOST_REMEMBERED: Final = 10_000
"""Credentials that were verified and are not verified again."""
_LONGEST_KEY: Final = 512

CertificateNames = tuple[tuple[str, str], ...]
"""Names of a verified certificate: kind (``uri``, ``dns``, ``common_name``) and text."""


class Credentials(NamedTuple):
    """What a caller shows; the one form for gRPC and HTTP."""

    authorization: str = ""
    """Value of ``authorization``."""
    api_key: str = ""
    """Value of ``x-api-key``."""
    certificate: CertificateNames = ()
    """Of the connection."""

    def __repr__(self) -> str:
        return f"Credentials({'credential, ' if self.authorization or self.api_key else ''}{self.certificate!r})"


class Authenticator:
    """Knows who there is, by one policy; another policy needs another one of these."""

    def __init__(self, policy: Policy, general: Limits) -> None:
        """Prepares it.

        Args:
            policy: Who there is.
            general: Limits of those for whom the policy has none.
        """
        self._general = general
        self._anonymous = Identity(ANONYMOUS, role_of(policy.anonymous), limits=general)
        self._keys: dict[bytes, tuple[bytes, ApiKey | None]] = {
            digest: (digest, key) for key in policy.api_keys for text in key.hashes if (digest := parse_hash(text))
        }
        self._jwt = JwtVerifier(policy.jwt, general)
        self._certificates = policy.certificates
        self._known: dict[object, Identity] = {}

    def known(self, presented: Credentials) -> Identity | None:
        """Gives the identity of what was verified before and has not expired; the way of almost every call."""
        identity = self._known.get(_mark(presented))
        if identity is None or (identity.expires is not None and identity.expires <= time.time()):
            return None
        return identity

    async def verify(self, presented: Credentials) -> Identity:
        """Tells who shows this, and remembers it.

        Raises:
            Unauthenticated: Nobody, or it is not valid any more.
            IssuerUnavailable: The keys of a token's issuer cannot be had.
        """
        authorization, api_key, certificate = presented
        if authorization and api_key:
            raise Refused("two credentials", "give one credential, not two")
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
        while len(self._known) >= MOST_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[_mark(presented)] = identity
        return identity

    def _of_key(self, text: str) -> Identity:
        if len(text) > _LONGEST_KEY:
            raise Refused("key too long")
        digest = digest_of(text)
        # Who searches cannot steer a SHA-256, so how far a look-up got tells nothing; the comparison that decides takes
        # the same time whatever differs.
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
            raise Refused("certificate without a rule", "nothing is granted to this certificate")
        return self._anonymous


def _mark(presented: Credentials) -> object:
    """Under what a credential is remembered: never as it is."""
    authorization, api_key, certificate = presented
    if not api_key:
        return digest_of(authorization) if authorization else certificate
    return digest_of(f"{authorization}\n{api_key}")  # no header has a line's end in it
