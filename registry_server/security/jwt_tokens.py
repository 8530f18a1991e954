"""``JwtVerifier``: verifies JSON Web Tokens (RFC 7519) of the issuers in the policy.

Follows RFC 8725: only algorithms that the policy allows for the issuer, never ``none`` or a shared secret; issuer and
audience must match; a token without expiry is rejected.
"""

import base64
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import jwt

from registry_server.errors import Unauthenticated
from registry_server.security.identity import Identity, Limits
from registry_server.security.jwks import IssuerKey, KeySet, source_of
from registry_server.security.policy import JwtIssuer, JwtRule, granted_identity
from registry_server.security.signature_checks import SignatureChecks

MAX_TOKEN_CHARACTERS: Final = 8_192
MAX_SUBJECT_CHARACTERS: Final = 256
_MAX_KEY_ID_CHARACTERS: Final = 256
_MAX_TIME: Final = 253_402_300_800
"""The year 10000; a later time is in milliseconds or forged, and timers cannot wait for it."""
_TOKEN: Final = re.compile(r"[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]+\.[A-Za-z0-9_=-]*")


class CredentialRefused(Unauthenticated):
    """The credential is not accepted. ``log_reason`` is logged; the message for the client contains less detail."""

    def __init__(self, log_reason: str, message: str = "the credential is not accepted") -> None:
        self.log_reason = log_reason
        super().__init__(message)


class JwtVerifier:
    """Verifies the tokens of several issuers."""

    def __init__(
        self,
        issuers: Sequence[JwtIssuer],
        default_limits: Limits,
        *,
        on_withdrawal: Callable[[], object],
        previous: "JwtVerifier | None" = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over the keys of the previous verifier.

        Args:
            issuers: The issuers.
            default_limits: Limits of identities for which the policy sets none.
            on_withdrawal: Called when an issuer has withdrawn a key.
            previous: The verifier that this one replaces.
            monotonic: Clock for the age of keys, in seconds.
        """
        self._default_limits = default_limits
        self.checks: SignatureChecks = previous.checks if previous is not None else SignatureChecks(monotonic=monotonic)
        """Shared by all policies, which replace one another."""
        self.issuers: dict[str, tuple[JwtIssuer, KeySet]] = {}
        """Issuers by the name in their tokens, with their keys."""
        self.replaced: list[KeySet] = []
        """Keys of issuers that the policy no longer contains, while they are loaded."""
        known: dict[object, KeySet] = {}
        if previous is not None:
            known = {source_of(issuer): keys for issuer, keys in previous.issuers.values()}
            self.replaced += previous.replaced
        for issuer in issuers:
            keys = known.pop(source_of(issuer), None)
            if keys is None:
                keys = KeySet(issuer, monotonic=monotonic)
            else:
                keys.name = issuer.name
            keys.on_withdrawal = on_withdrawal
            self.issuers[issuer.issuer] = issuer, keys
        self.replaced = [keys for keys in (*self.replaced, *known.values()) if keys.is_loading]

    def load_keys(self) -> None:
        """Load the keys of all issuers in the background."""
        for _, keys in self.issuers.values():
            keys.reload()

    async def close(self) -> None:
        """Cancel loads of keys in flight."""
        for keys in [*self.replaced, *(keys for _, keys in self.issuers.values())]:
            await keys.close()

    async def verify_token(self, token: str, address: str | None) -> Identity:
        """Return the identity of a token.

        Everything that costs little is checked before the signature, which is verified in the caller's turn.

        Args:
            token: The token.
            address: Address of the caller; ``None`` = the registry itself checks a token again and waits for no turn.

        Raises:
            CredentialRefused: The token is not valid, or no rule of the policy applies to it.
            IssuerUnavailable: The keys of its issuer are not available.
            Overloaded: Too many tokens wait for verification.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise CredentialRefused("token too long")
        header, claimed = _unverified_parts(token)
        name = claimed.get("iss")
        if not isinstance(name, str) or name not in self.issuers:
            raise CredentialRefused("unknown issuer")
        issuer, keys = self.issuers[name]
        kid, algorithm = header.get("kid"), header.get("alg")
        if kid is not None and (not isinstance(kid, str) or len(kid) > _MAX_KEY_ID_CHARACTERS):
            raise CredentialRefused("invalid key id")
        if algorithm not in issuer.algorithms:
            raise CredentialRefused("InvalidAlgorithmError")
        if "crit" in header or "b64" in header:  # extensions, none of which is supported
            raise CredentialRefused("unsupported header")
        subject = _subject_of(claimed, issuer)
        await keys.refresh(kid)
        _key_for(algorithm, kid, keys)
        verify = partial(_verified_claims, token, algorithm, kid, keys, issuer)
        claims = verify() if address is None else await self.checks.run(address, (name, subject), verify)
        subject = _subject_of(claims, issuer)
        rule = next((rule for rule in issuer.rules if _applies(rule, claims)), None)
        if rule is None:
            raise CredentialRefused("no rule for this token", "the token is valid, but the policy grants it nothing")
        expires = float(claims["exp"]) + issuer.leeway_seconds
        return granted_identity(rule, f"{issuer.name}:{subject}", "jwt", subject, self._default_limits, expires)


def _unverified_parts(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return header and claims of a token whose signature is not verified."""
    # Decoders that skip other characters would accept any number of texts as the same token.
    if not _TOKEN.fullmatch(token):
        raise CredentialRefused("malformed token")
    try:
        header, claims, _ = token.split(".")
        decoded = [json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in (header, claims)]
    except (ValueError, RecursionError):
        raise CredentialRefused("malformed token") from None
    if not all(isinstance(part, dict) for part in decoded):
        raise CredentialRefused("malformed token")
    return decoded[0], decoded[1]


def _subject_of(claims: Mapping[str, Any], issuer: JwtIssuer) -> str:
    """Check the claims and return the subject."""
    now, leeway = time.time(), issuer.leeway_seconds
    for name in ("exp", "nbf", "iat"):
        value = claims.get(name)
        # Comparisons with NaN are false.
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MAX_TIME
        ):
            raise CredentialRefused(f"invalid claim {name}")
        if name != "exp" and value is not None and value > now + leeway:
            raise CredentialRefused("token not yet valid", "the token is not valid yet")
    for name in ("exp", "aud"):
        if claims.get(name) is None:
            raise CredentialRefused(f"missing claim {name}")
    if claims["exp"] <= now - leeway:
        raise CredentialRefused("expired token", "the token has expired")
    audience = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    if not any(each in audience for each in issuer.audience):
        raise CredentialRefused("wrong audience", "the token is for another audience")
    subject = _claim_value(claims, issuer.subject_claim)
    if not isinstance(subject, str) or not is_valid_subject(subject):
        raise CredentialRefused("missing or invalid subject")
    return subject


def is_valid_subject(text: str) -> bool:
    """Return whether a text can be part of the name of an identity, which is logged and stored."""
    return 0 < len(text) <= MAX_SUBJECT_CHARACTERS and text.isprintable()


def _key_for(algorithm: str, kid: str | None, keys: KeySet) -> IssuerKey:
    key = keys.find(kid)
    if key is None:
        raise CredentialRefused("unknown key")
    if algorithm not in key.algorithms:
        raise CredentialRefused("key type mismatch")
    return key


def _verified_claims(token: str, algorithm: str, kid: str | None, keys: KeySet, issuer: JwtIssuer) -> Mapping[str, Any]:
    key = _key_for(algorithm, kid, keys)  # it may have been withdrawn while the token waited for its turn
    try:
        return jwt.decode(
            token,
            key.public_key,
            algorithms=[algorithm],
            audience=list(issuer.audience),
            issuer=issuer.issuer,
            leeway=issuer.leeway_seconds,
            options={"require": ["exp", "iss", "aud"]},
        )
    except Exception as error:  # noqa: BLE001 - the libraries raise many types; none of them accepts the token
        raise CredentialRefused(type(error).__name__) from None


def _claim_value(claims: Mapping[str, Any], path: str) -> Any:
    if path in claims:  # a claim whose name contains dots, such as a URL
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _applies(rule: JwtRule, claims: Mapping[str, Any]) -> bool:
    """Return whether a rule applies: its claim equals the value, or contains it as a word or list item."""
    if rule.claim is None:
        return True
    value = _claim_value(claims, rule.claim)
    if isinstance(value, str):
        return rule.has == value or rule.has in value.split(" ")
    return isinstance(value, list) and rule.has in value
