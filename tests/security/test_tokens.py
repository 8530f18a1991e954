"""JSON Web Tokens: which are taken, and where the keys come from."""

import base64
import dataclasses
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from registry_server.errors import IssuerUnavailable
from registry_server.security import jwks as jwks_module
from registry_server.security.authenticator import MAX_CACHED_CREDENTIALS, Authenticator, Credentials
from registry_server.security.identity import Limits, Role
from registry_server.security.jwt_tokens import Refused
from registry_server.security.policy import read_policy
from tests.support.security import ISSUER, SIGNERS, Policy, jwks, token

GENERAL = Limits(1000, 1000, 10, 10)


def authenticator(policy: Policy) -> Authenticator:
    policy.write()
    return Authenticator(read_policy(policy.file), GENERAL)


def shown(text: str) -> Credentials:
    return Credentials(authorization=f"Bearer {text}")


@pytest.mark.parametrize("algorithm", SIGNERS)
async def test_a_token_is_an_identity(algorithm: str, policy: Policy) -> None:
    ends = int(time.time()) + 100
    good = token("planner", algorithm=algorithm, roles=["agent"], exp=ends)
    identity = await authenticator(policy).verify(shown(good))
    assert (identity.name, identity.role, identity.method) == ("test:planner", Role.AGENT, "jwt")
    assert identity.patterns == ("planner", "fleet-*")
    assert identity.expires == ends + 1  # with the leeway


def forged(algorithm: str, key: bytes = b"") -> str:
    """A token that PyJWT would not make: not signed, or by a public key as if it was a shared secret."""

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
REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(roles=["admin"], exp=NOW - 10), "expired token"),
    "of the future": (lambda: token(roles=["admin"], nbf=NOW + 3600), "token of the future"),
    "without an end": (lambda: token(roles=["admin"], exp=None), "no claim exp"),
    "without an audience": (lambda: token(roles=["admin"], aud=None), "no claim aud"),
    "for another audience": (lambda: token(roles=["admin"], aud=["a", "b"]), "wrong audience"),
    "of another issuer": (lambda: token(roles=["admin"], iss="https://other.test"), "unknown issuer"),
    "of no issuer": (lambda: token(roles=["admin"], iss=None), "unknown issuer"),
    "without a subject": (lambda: token(roles=["admin"], sub=None), "no subject"),
    "with a subject that is none": (lambda: token("x" * 300, roles=["admin"]), "no subject"),
    "signed by somebody else": (
        lambda: token(roles=["admin"], key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "InvalidSignatureError",
    ),
    "of an unknown key": (lambda: token(roles=["admin"], headers={"kid": "other"}), "unknown key"),
    "of a key of another kind": (lambda: token(roles=["admin"], headers={"kid": "ES256"}), "key of another kind"),
    "of no algorithm": (lambda: forged("none"), "InvalidAlgorithmError"),
    "of a shared secret": (lambda: forged("HS256", public_pem()), "InvalidAlgorithmError"),
    "granted nothing": (lambda: token(roles=["king"]), "no rule for this token"),
    "with roles that are none": (lambda: token(roles={"admin": True}), "no rule for this token"),
    "no token": (lambda: "a.b.c", "not a token"),
    "too long": (lambda: token(roles=["admin"], filler="x" * 9000), "token too long"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_bad_token_is_refused(name: str, policy: Policy) -> None:
    make, why = REFUSED[name]
    with pytest.raises(Refused) as caught:
        await authenticator(policy).verify(shown(make()))
    assert caught.value.why == why


async def test_a_signature_that_was_changed_is_refused_wherever(policy: Policy) -> None:
    checks = authenticator(policy)
    good = token(roles=["admin"], algorithm="EdDSA")
    head, claims, signature = good.split(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    for i in range(0, len(raw), 7):
        changed = raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]
        with pytest.raises(Refused):
            await checks.verify(shown(f"{head}.{claims}.{base64.urlsafe_b64encode(changed).decode().rstrip('=')}"))
    assert (await checks.verify(shown(good))).role is Role.ADMIN


@pytest.mark.parametrize(
    ("claim", "claims", "given"),
    [
        ("scope", {"scope": "read registry:write"}, True),
        ("scope", {"scope": "registry:writer"}, False),
        ("realm_access.roles", {"realm_access": {"roles": ["registry:write"]}}, True),
        ("realm_access.roles", {"realm_access": ["registry:write"]}, False),
        ("https://claims\u2024test/role", {"https://claims\u2024test/role": "registry:write"}, True),
    ],
)
async def test_a_rule_looks_into_claims(claim: str, claims: dict[str, Any], policy: Policy, *, given: bool) -> None:
    policy.document["jwt"][0]["rules"] = [{"claim": claim, "has": "registry:write", "role": "operator"}]
    checks = authenticator(policy)
    if given:
        assert (await checks.verify(shown(token(**claims)))).role is Role.OPERATOR
    else:
        with pytest.raises(Refused):
            await checks.verify(shown(token(**claims)))


@pytest.mark.parametrize("subject", ["*", "a*", "../x", "spiffe://a/b"])
async def test_a_subject_never_becomes_a_pattern_of_its_own(subject: str, policy: Policy) -> None:
    policy.document["jwt"][0]["rules"] = [{"role": "agent", "patterns": ["{subject}", "x-{subject}-*", "plain"]}]
    identity = await authenticator(policy).verify(shown(token(subject)))
    assert identity.patterns == ("plain",)


# Remembering.


async def test_what_was_verified_is_remembered_until_it_expires(policy: Policy) -> None:
    checks = authenticator(policy)
    policy.jwks_file.unlink()  # after this only memory can help
    key = shown(policy.keys["viewer"])
    assert checks.cached_identity(key) is None
    identity = await checks.verify(key)
    assert checks.cached_identity(key) is identity
    ending = shown(policy.keys["agent"])
    await checks.verify(ending)
    checks._cache = {mark: dataclasses.replace(one, expires=time.time() - 1) for mark, one in checks._cache.items()}
    assert checks.cached_identity(ending) is None


async def test_memory_is_bounded_and_holds_no_credential(policy: Policy) -> None:
    policy.document["anonymous"] = "viewer"
    checks = authenticator(policy)
    for i in range(MAX_CACHED_CREDENTIALS + 50):
        await checks.verify(Credentials(certificate=(("dns", f"{i}.test"),)))
    assert len(checks._cache) == MAX_CACHED_CREDENTIALS
    await checks.verify(shown(policy.keys["admin"]))
    assert policy.keys["admin"] not in repr(vars(checks)) + repr(shown(policy.keys["admin"]))


# Where keys come from.


class Provider:
    """An identity provider: serves its keys, and may fail at it."""

    def __init__(self) -> None:
        self.document: Any = jwks(["RS256"])
        self.status = 200
        self.asked = 0

    async def answer(self, _: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.status == 302:
            raise web.HTTPFound("/elsewhere")
        body = self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()
        return web.Response(status=self.status, body=body)


@asynccontextmanager
async def provider(policy: Policy) -> AsyncIterator[Provider]:
    made = Provider()
    app = web.Application()
    app.router.add_get("/keys", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    entry = policy.document["jwt"][0]
    entry.pop("jwks_file", None)
    entry["jwks_url"] = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    try:
        yield made
    finally:
        await runner.cleanup()


async def test_keys_from_a_url_are_read_once_and_again_for_an_unknown_one(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with provider(policy) as idp:
        checks = authenticator(policy)
        for i in range(5):
            await checks.verify(shown(token(f"s{i}", roles=["admin"])))
        assert idp.asked == 1
        new = shown(token(roles=["admin"], algorithm="ES256"))
        idp.document = jwks(["RS256", "ES256"])
        with pytest.raises(Refused):
            await checks.verify(new)
        assert idp.asked == 1, "strangers must not make us ask again and again"
        monkeypatch.setattr(jwks_module, "MIN_RELOAD_INTERVAL_SECONDS", 0.0)
        assert (await checks.verify(new)).role is Role.ADMIN
        assert idp.asked == 2


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (500, None),
        (302, None),
        (200, b"no json"),
        (200, {"keys": []}),
        (200, {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "RS256"}]}),
        (200, b" " * (2 << 20)),
        (200, [1]),
    ],
)
async def test_without_good_keys_nobody_can_tell(
    status: int, document: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks_module, "MIN_RELOAD_INTERVAL_SECONDS", 0.0)
    async with provider(policy) as idp:
        checks = authenticator(policy)
        good, idp.document, idp.status = idp.document, document, status
        with pytest.raises(IssuerUnavailable):
            await checks.verify(shown(token(roles=["admin"])))
        idp.document, idp.status = good, 200
        await checks.verify(shown(token(roles=["admin"])))
        # Known keys stay good while their source is away.
        idp.status = 500
        monkeypatch.setattr(jwks_module, "REFRESH_SECONDS", 0.0)
        await checks.verify(shown(token("other", roles=["admin"])))
        monkeypatch.setattr(jwks_module, "MAX_STALE_SECONDS", 0.0)
        with pytest.raises(IssuerUnavailable):
            await checks.verify(shown(token("third", roles=["admin"])))


async def test_a_provider_that_is_away_is_no_answer(policy: Policy) -> None:
    async with provider(policy):
        pass
    with pytest.raises(IssuerUnavailable):
        await authenticator(policy).verify(shown(token(roles=["admin"])))


async def test_a_token_without_key_id_is_taken_where_there_is_one_key(policy: Policy, tmp_path: Path) -> None:
    plain = jwt.encode(
        {"iss": ISSUER, "aud": "ossa-registry", "sub": "a", "exp": int(time.time()) + 3600, "roles": ["admin"]},
        SIGNERS["RS256"],
        algorithm="RS256",
    )
    with pytest.raises(Refused):
        await authenticator(policy).verify(shown(plain))
    file = tmp_path / "one.json"
    file.write_text(json.dumps(jwks(["RS256"])), encoding="utf-8")
    policy.document["jwt"][0]["jwks_file"] = str(file)
    assert (await authenticator(policy).verify(shown(plain))).role is Role.ADMIN


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Basic abc", "bearer\tx", "Bearer  "])
async def test_what_is_no_bearer_credential_is_refused(authorization: str, policy: Policy) -> None:
    checks = authenticator(policy)
    if not authorization:
        assert (await checks.verify(Credentials())).role is Role.NONE
        return
    with pytest.raises(Refused):
        await checks.verify(Credentials(authorization=authorization))
