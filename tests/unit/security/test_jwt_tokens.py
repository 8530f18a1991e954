"""``JwtVerifier``: accepted and refused JSON Web Tokens."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from registry_server.security.identity import Role
from registry_server.security.jwt_tokens import CredentialRefused
from tests.support.security import ISSUER, SIGNERS, Policy, jwks, token
from tests.unit.security.credentials import authenticator_of, bearer_credentials


@pytest.mark.parametrize("algorithm", SIGNERS)
async def test_valid_token_yields_an_identity(algorithm: str, policy: Policy) -> None:
    expiry = int(time.time()) + 100
    good = token("planner", algorithm=algorithm, roles=["agent"], exp=expiry)
    identity = await authenticator_of(policy).verify(bearer_credentials(good))
    assert (identity.name, identity.role, identity.method) == ("test:planner", Role.AGENT, "jwt")
    assert identity.patterns == ("planner", "fleet-*")
    assert identity.expires == expiry + 1  # with the leeway


def forged(algorithm: str, key: bytes = b"") -> str:
    """Return a token that PyJWT refuses to create: unsigned, or signed with a public key as a shared secret."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    claims = jwt.decode(token(roles=["admin"]), options={"verify_signature": False})
    text = f"{part({'alg': algorithm, 'kid': 'RS256'})}.{part(claims)}"
    signature = hmac.new(key, text.encode(), hashlib.sha256).digest() if key else b""
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def public_pem() -> bytes:
    public: Any = SIGNERS["RS256"].public_key()
    return bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


NOW = int(time.time())
REFUSED_TOKENS: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(roles=["admin"], exp=NOW - 10), "expired token"),
    "not yet valid": (lambda: token(roles=["admin"], nbf=NOW + 3600), "token not yet valid"),
    "without expiry": (lambda: token(roles=["admin"], exp=None), "missing claim exp"),
    "without audience": (lambda: token(roles=["admin"], aud=None), "missing claim aud"),
    "for another audience": (lambda: token(roles=["admin"], aud=["a", "b"]), "wrong audience"),
    "of another issuer": (lambda: token(roles=["admin"], iss="https://other.test"), "unknown issuer"),
    "without issuer": (lambda: token(roles=["admin"], iss=None), "unknown issuer"),
    "without subject": (lambda: token(roles=["admin"], sub=None), "missing or invalid subject"),
    "with too long a subject": (lambda: token("x" * 300, roles=["admin"]), "missing or invalid subject"),
    "signed by another key": (
        lambda: token(roles=["admin"], key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "InvalidSignatureError",
    ),
    "with an unknown key id": (lambda: token(roles=["admin"], headers={"kid": "other"}), "unknown key"),
    "with a key of another type": (lambda: token(roles=["admin"], headers={"kid": "ES256"}), "key type mismatch"),
    "unsigned": (lambda: forged("none"), "InvalidAlgorithmError"),
    "signed with a shared secret": (lambda: forged("HS256", public_pem()), "InvalidAlgorithmError"),
    "without a granted role": (lambda: token(roles=["king"]), "no rule for this token"),
    "with roles of a wrong type": (lambda: token(roles={"admin": True}), "no rule for this token"),
    "malformed": (lambda: "a.b.c", "malformed token"),
    "too long": (lambda: token(roles=["admin"], filler="x" * 9000), "token too long"),
}


def signed(claims: bytes, header: dict[str, Any] | None = None) -> str:
    """Return a signed token with exactly these claims."""
    parts = [json.dumps({"alg": "EdDSA", "kid": "EdDSA", **(header or {})}).encode(), claims]
    text = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)
    signature = base64.urlsafe_b64encode(SIGNERS["EdDSA"].sign(text.encode())).rstrip(b"=").decode()
    return f"{text}.{signature}"


def claims_with(name: str, json_value: str) -> bytes:
    """Return claims of an admin in which one has a value given as JSON text."""
    claims = {"iss": ISSUER, "aud": "ossa-registry", "sub": "a", "exp": NOW + 3600, "roles": ["admin"]}
    texts = {key: json.dumps(value) for key, value in claims.items()} | {name: json_value}
    return ("{" + ",".join(f'"{key}":{value}' for key, value in texts.items()) + "}").encode()


ODD_VALUES = (
    "NaN", "Infinity", "-Infinity", "true", "null", "[]", "{}", "[[]]", '{"a":[null]}', '"x"', f'"{NOW + 600}"', "-1",
    '"\\u0669\\u0669\\u0669\\u0669\\u0669\\u0669\\u0669\\u0669\\u0669\\u0669"', "1e308", "1" + "0" * 400, "9" * 4_500,
    "[" * 2_000,
    '"\\ud800"', '"a\\u0000b"', '"a\\nb"', '"\\u202e"',
)  # fmt: skip


@pytest.mark.parametrize("name", ["exp", "nbf", "iat", "aud", "iss", "sub", "jti", "roles", "extra"])
async def test_claim_of_any_type_is_refused_or_harmless(name: str, policy: Policy) -> None:
    authenticator = authenticator_of(policy)
    for value in ODD_VALUES:
        credentials = bearer_credentials(signed(claims_with(name, value)))
        try:
            identity = await authenticator.verify(credentials)
        except CredentialRefused:
            continue
        assert name in {"jti", "extra", "nbf", "iat"} or (name == "sub" and json.loads(value).isprintable()), value
        assert identity.expires is not None
        assert NOW < identity.expires < NOW + 4_000
        assert value not in {"NaN", "Infinity", "1e308"} or name == "extra"


ODD_HEADERS: list[dict[str, Any]] = [
    {"alg": ["EdDSA"]}, {"alg": {}}, {"alg": None}, {"alg": 5}, {"alg": "none"}, {"alg": "eddsa"}, {"alg": "RS256"},
    {"kid": 5}, {"kid": ["EdDSA"]}, {"kid": {}}, {"kid": "x" * 5_000}, {"kid": "../EdDSA"}, {"kid": "\ud800"},
    {"crit": ["exp"], "exp": 1}, {"crit": []}, {"crit": "b64"}, {"b64": False}, {"b64": False, "crit": ["b64"]},
    {"kid": "other", "jwk": jwks(["EdDSA"])["keys"][0]}, {"kid": None},
]  # fmt: skip


@pytest.mark.parametrize("header", ODD_HEADERS, ids=lambda header: str(header)[:25])
async def test_odd_header_is_refused(header: dict[str, Any], policy: Policy) -> None:
    credentials = bearer_credentials(signed(claims_with("roles", '["admin"]'), header))
    with pytest.raises(CredentialRefused):
        await authenticator_of(policy).verify(credentials)


async def test_cheap_checks_come_before_the_signature(policy: Policy) -> None:
    authenticator = authenticator_of(policy)
    await authenticator.verify(bearer_credentials(token(roles=["admin"])))
    with patch.object(jwt, "decode") as decode:
        times = ({"exp": NOW - 60}, {"exp": 10**400}, {"nbf": NOW + 86_400}, {"iat": NOW + 86_400})
        for claims in (*times, {"aud": "other"}, {"iss": "other"}, {"sub": ""}):
            with pytest.raises(CredentialRefused):
                await authenticator.verify(bearer_credentials(token(roles=["admin"], **claims)))
        for header in ({"kid": "other"}, {"kid": "ES256"}, {"crit": ["x"]}):
            with pytest.raises(CredentialRefused):
                await authenticator.verify(bearer_credentials(token(roles=["admin"], headers=header)))
    decode.assert_not_called()


@pytest.mark.parametrize("name", REFUSED_TOKENS)
async def test_bad_token_is_refused_with_a_reason(name: str, policy: Policy) -> None:
    make_token, reason = REFUSED_TOKENS[name]
    with pytest.raises(CredentialRefused) as caught:
        await authenticator_of(policy).verify(bearer_credentials(make_token()))
    assert caught.value.log_reason == reason


async def test_token_with_any_changed_signature_byte_is_refused(policy: Policy) -> None:
    authenticator = authenticator_of(policy)
    good = token(roles=["admin"], algorithm="EdDSA")
    head, claims, signature = good.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    for i in range(0, len(raw), 7):
        changed = base64.urlsafe_b64encode(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]).decode().rstrip("=")
        with pytest.raises(CredentialRefused):
            await authenticator.verify(bearer_credentials(f"{head}.{claims}.{changed}"))
    assert (await authenticator.verify(bearer_credentials(good))).role is Role.ADMIN


@pytest.mark.parametrize(
    ("claim", "claims", "granted"),
    [
        ("scope", {"scope": "read registry:write"}, True),
        ("scope", {"scope": "registry:writer"}, False),
        ("scope", {"scope": "x\u00a0registry:write"}, False),
        ("realm_access.roles", {"realm_access": {"roles": ["registry:write"]}}, True),
        ("realm_access.roles", {"realm_access": ["registry:write"]}, False),
        ("https://claims\u2024test/role", {"https://claims\u2024test/role": "registry:write"}, True),
    ],
)
async def test_rule_matches_text_list_and_nested_claims(
    claim: str, claims: dict[str, Any], policy: Policy, *, granted: bool
) -> None:
    policy.document["jwt"][0]["rules"] = [{"claim": claim, "has": "registry:write", "role": "operator"}]
    authenticator = authenticator_of(policy)
    credentials = bearer_credentials(token(**claims))
    if granted:
        assert (await authenticator.verify(credentials)).role is Role.OPERATOR
    else:
        with pytest.raises(CredentialRefused):
            await authenticator.verify(credentials)


@pytest.mark.parametrize("subject", ["*", "a*", "../x", "spiffe://a/b"])
async def test_subject_that_is_no_plain_name_is_left_out_of_patterns(subject: str, policy: Policy) -> None:
    policy.document["jwt"][0]["rules"] = [{"role": "agent", "patterns": ["{subject}", "x-{subject}-*", "plain"]}]
    identity = await authenticator_of(policy).verify(bearer_credentials(token(subject)))
    assert identity.patterns == ("plain",)


async def test_token_without_key_id_needs_a_set_with_one_key(policy: Policy, tmp_path: Path) -> None:
    plain = jwt.encode(
        {"iss": ISSUER, "aud": "ossa-registry", "sub": "a", "exp": int(time.time()) + 3600, "roles": ["admin"]},
        SIGNERS["RS256"],
        algorithm="RS256",
    )
    with pytest.raises(CredentialRefused):
        await authenticator_of(policy).verify(bearer_credentials(plain))
    file = tmp_path / "one.json"
    file.write_text(json.dumps(jwks(["RS256"])), encoding="utf-8")
    policy.document["jwt"][0]["jwks_file"] = str(file)
    assert (await authenticator_of(policy).verify(bearer_credentials(plain))).role is Role.ADMIN
