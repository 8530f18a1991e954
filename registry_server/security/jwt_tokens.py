"""``JwtVerifier``: who holds a JSON Web Token (RFC 7519), by the issuers of the policy.

After RFC 8725: the algorithm is one that the policy allows for this issuer and never ``none`` or a shared secret;
issuer and audience have to be ours; a token without an end is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import jwt

from registry_server.errors import Unauthenticated
from registry_server.security.identity import Identity, Limits
from registry_server.security.jwks import KeySet
from registry_server.security.policy import JwtIssuer, JwtRule, granted

LONGEST_TOKEN: Final = 8_192
"""Characters."""
_LONGEST_SUBJECT: Final = 256
_LONGEST_ID: Final = 256


class Refused(Unauthenticated):
    """A credential is refused: ``why`` is for the log, the message for the client, who is told less."""

    def __init__(self, why: str, told: str = "the credential is not accepted") -> None:
        self.why = why
        super().__init__(told)


class JwtVerifier:
    """Verifies tokens."""

    def __init__(self, issuers: Sequence[JwtIssuer], general: Limits) -> None:
        self._issuers = {issuer.issuer: (issuer, KeySet(issuer)) for issuer in issuers}
        self._general = general

    async def identity(self, token: str) -> Identity:
        """Tells who holds a token.

        Raises:
            Refused: It is not valid, or the policy gives its holder nothing.
            IssuerUnavailable: The keys of its issuer cannot be had.
        """
        if len(token) > LONGEST_TOKEN:
            raise Refused("token too long")
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            claimed = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Refused("not a token") from None
        if not isinstance(claimed, str) or claimed not in self._issuers:
            raise Refused("unknown issuer")
        if kid is not None and (not isinstance(kid, str) or len(kid) > _LONGEST_ID):
            raise Refused("bad key id")
        issuer, keys = self._issuers[claimed]
        key = await keys.key(kid)
        if key is None:
            raise Refused("unknown key")
        claims = _verified(token, key, issuer)
        subject = _claim(claims, issuer.subject_claim)
        if not isinstance(subject, str) or not 0 < len(subject) <= _LONGEST_SUBJECT:
            raise Refused("no subject")
        rule = next((rule for rule in issuer.rules if _applies(rule, claims)), None)
        if rule is None:
            raise Refused("no rule for this token", "the token is valid, but nothing is granted to its holder")
        expires = float(claims["exp"]) + issuer.leeway_seconds
        return granted(rule, f"{issuer.name}:{subject}", "jwt", subject, self._general, expires)


def _verified(token: str, key: jwt.PyJWK, issuer: JwtIssuer) -> Mapping[str, Any]:
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
        raise Refused("expired token", "the token has expired") from None
    except jwt.ImmatureSignatureError:
        raise Refused("token of the future", "the token is not valid yet") from None
    except jwt.InvalidAudienceError:
        raise Refused("wrong audience", "the token is for another audience") from None
    except jwt.MissingRequiredClaimError as error:
        raise Refused(f"no claim {error.claim}") from None
    except (jwt.InvalidKeyError, TypeError):
        raise Refused("key of another kind") from None
    except (jwt.PyJWTError, ValueError, OverflowError) as error:
        raise Refused(type(error).__name__) from None


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    if path in claims:  # a name with dots, such as that of a URL
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _applies(rule: JwtRule, claims: Mapping[str, Any]) -> bool:
    """Whether a claim has a value: it is that text, one of those in it (as in ``scope``), or a list with it."""
    if rule.claim is None:
        return True
    value = _claim(claims, rule.claim)
    if isinstance(value, str):
        return rule.has == value or rule.has in value.split()
    return isinstance(value, list) and rule.has in value
