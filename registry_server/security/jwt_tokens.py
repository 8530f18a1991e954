"""``JwtVerifier``: verifies JSON Web Tokens (RFC 7519) of the issuers in the policy.

Follows RFC 8725: only algorithms that the policy allows for the issuer, never ``none`` or a shared secret; issuer and
audience must match; a token without expiry is rejected.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jwt

from registry_server.errors import Unauthenticated
from registry_server.security.identity import Identity, Limits
from registry_server.security.jwks import KeySet
from registry_server.security.policy import JwtIssuer, JwtRule, granted_identity

MAX_TOKEN_CHARACTERS: Final = 8_192
_MAX_SUBJECT_CHARACTERS: Final = 256
_MAX_KEY_ID_CHARACTERS: Final = 256


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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuers = {issuer.issuer: (issuer, KeySet(issuer, monotonic=monotonic)) for issuer in issuers}
        self._default_limits = default_limits

    async def verify_token(self, token: str) -> Identity:
        """Return the identity of a token.

        Raises:
            CredentialRefused: The token is not valid, or no rule of the policy applies to it.
            IssuerUnavailable: The keys of its issuer are not available.
        """
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise CredentialRefused("token too long")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            claimed = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise CredentialRefused("malformed token") from None
        if not isinstance(claimed, str) or claimed not in self._issuers:
            raise CredentialRefused("unknown issuer")
        if kid is not None and (not isinstance(kid, str) or len(kid) > _MAX_KEY_ID_CHARACTERS):
            raise CredentialRefused("invalid key id")
        issuer, keys = self._issuers[claimed]
        key = await keys.key(kid)
        if key is None:
            raise CredentialRefused("unknown key")
        claims = _verified_claims(token, key, issuer)
        subject = _claim_value(claims, issuer.subject_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS:
            raise CredentialRefused("missing or invalid subject")
        rule = next((rule for rule in issuer.rules if _applies(rule, claims)), None)
        if rule is None:
            raise CredentialRefused("no rule for this token", "the token is valid, but the policy grants it nothing")
        expires = float(claims["exp"]) + issuer.leeway_seconds
        return granted_identity(rule, f"{issuer.name}:{subject}", "jwt", subject, self._default_limits, expires)


def _verified_claims(token: str, key: jwt.PyJWK, issuer: JwtIssuer) -> Mapping[str, Any]:
    try:
        return jwt.decode(
            token,
            key.key,
            algorithms=list(issuer.algorithms),
            audience=list(issuer.audience),
            issuer=issuer.issuer,
            leeway=issuer.leeway_seconds,
            options={"require": ["exp", "iss", "aud"]},
        )
    except jwt.ExpiredSignatureError:
        raise CredentialRefused("expired token", "the token has expired") from None
    except jwt.ImmatureSignatureError:
        raise CredentialRefused("token not yet valid", "the token is not valid yet") from None
    except jwt.InvalidAudienceError:
        raise CredentialRefused("wrong audience", "the token is for another audience") from None
    except jwt.MissingRequiredClaimError as error:
        raise CredentialRefused(f"missing claim {error.claim}") from None
    except (jwt.InvalidKeyError, TypeError):
        raise CredentialRefused("key type mismatch") from None
    except (jwt.PyJWTError, ValueError, OverflowError) as error:
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
        return rule.has == value or rule.has in value.split()
    return isinstance(value, list) and rule.has in value
