"""``KeySet``: keys from the URL of an identity provider."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from registry_server.errors import IssuerUnavailable
from registry_server.security.authenticator import Authenticator
from registry_server.security.identity import Role
from registry_server.security.jwks import (
    MAX_STALE_SECONDS,
    MAX_WAITING,
    MIN_RELOAD_INTERVAL_SECONDS,
    REFRESH_SECONDS,
    _parsed,
)
from registry_server.security.jwt_tokens import CredentialRefused
from registry_server.security.policy import read_policy
from tests.support.manual_clock import ManualClock
from tests.support.security import Policy, jwks, token
from tests.support.waiting import until
from tests.unit.security.credentials import DEFAULT_LIMITS, authenticator_of, bearer_credentials


class IdentityProvider:
    """Serves a JWK Set, or ``document`` with ``status``."""

    def __init__(self) -> None:
        self.document: Any = jwks(["RS256"])
        self.status = 200
        self.requests = 0
        self.answers = asyncio.Event()
        """Not set = the provider hangs."""
        self.answers.set()

    async def serve(self, _: web.Request) -> web.StreamResponse:
        self.requests += 1
        await self.answers.wait()
        if self.status == 302:
            raise web.HTTPFound("/elsewhere")
        body = self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()
        return web.Response(status=self.status, body=body)


@asynccontextmanager
async def identity_provider(policy: Policy) -> AsyncIterator[IdentityProvider]:
    """Run an identity provider and make it the key source of the policy's issuer."""
    provider = IdentityProvider()
    app = web.Application()
    app.router.add_get("/keys", provider.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    entry = policy.document["jwt"][0]
    entry.pop("jwks_file", None)
    entry["jwks_url"] = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    try:
        yield provider
    finally:
        provider.answers.set()
        await runner.cleanup()


async def test_keys_are_loaded_once_and_again_for_an_unknown_key_id(policy: Policy, clock: ManualClock) -> None:
    async with identity_provider(policy) as provider:
        authenticator = authenticator_of(policy, clock)
        for i in range(5):
            await authenticator.verify(bearer_credentials(token(f"s{i}", roles=["admin"])))
        assert provider.requests == 1
        new = bearer_credentials(token(roles=["admin"], algorithm="ES256"))
        provider.document = jwks(["RS256", "ES256"])
        with pytest.raises(CredentialRefused):
            await authenticator.verify(new)
        assert provider.requests == 1, "any caller could trigger requests without limit"
        clock.now += MIN_RELOAD_INTERVAL_SECONDS
        assert (await authenticator.verify(new)).role is Role.ADMIN
        assert provider.requests == 2


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
async def test_issuer_is_unavailable_without_keys_or_with_stale_keys(
    status: int, document: Any, policy: Policy, clock: ManualClock
) -> None:
    async with identity_provider(policy) as provider:
        authenticator = authenticator_of(policy, clock)
        good, provider.document, provider.status = provider.document, document, status
        with pytest.raises(IssuerUnavailable):
            await authenticator.verify(bearer_credentials(token(roles=["admin"])))
        provider.document, provider.status = good, 200
        clock.now += MIN_RELOAD_INTERVAL_SECONDS
        await authenticator.verify(bearer_credentials(token(roles=["admin"])))
        # Keys remain valid while their source is unavailable, until they are stale.
        provider.status, requests = 500, provider.requests
        clock.now += REFRESH_SECONDS + 1
        await authenticator.verify(bearer_credentials(token("other", roles=["admin"])))
        await until(lambda: provider.requests == requests + 1)
        clock.now += MAX_STALE_SECONDS
        with pytest.raises(IssuerUnavailable):
            await authenticator.verify(bearer_credentials(token("third", roles=["admin"])))


async def test_unreachable_provider_makes_the_issuer_unavailable(policy: Policy) -> None:
    async with identity_provider(policy):
        pass
    with pytest.raises(IssuerUnavailable):
        await authenticator_of(policy).verify(bearer_credentials(token(roles=["admin"])))


async def test_known_keys_serve_while_the_provider_hangs(policy: Policy, clock: ManualClock) -> None:
    async with identity_provider(policy) as provider:
        authenticator = authenticator_of(policy, clock)
        await authenticator.verify(bearer_credentials(token(roles=["admin"])))
        provider.answers.clear()
        clock.now += REFRESH_SECONDS + 1
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for i in range(20):
                group.create_task(authenticator.verify(bearer_credentials(token(f"s{i}", roles=["admin"]))))
        assert time.perf_counter() - began < 0.5
        await until(lambda: provider.requests == 2)
        # A reloaded policy keeps them too, also under another name.
        policy.document["jwt"][0]["name"] = "renamed"
        policy.write()
        reloaded = Authenticator(read_policy(policy.file), DEFAULT_LIMITS, previous=authenticator, monotonic=clock)
        reloaded.load_keys()
        identity = await reloaded.verify(bearer_credentials(token("one", roles=["admin"])))
        assert identity.name == "renamed:one"
        assert time.perf_counter() - began < 0.5
        assert provider.requests == 2, "one load at a time"
        await reloaded.close()


@pytest.mark.slow
async def test_unknown_key_ids_wait_for_one_load_and_not_for_long(policy: Policy, clock: ManualClock) -> None:
    unknown = bearer_credentials(token(roles=["admin"], headers={"kid": "unknown"}))
    async with identity_provider(policy) as provider:
        authenticator = authenticator_of(policy, clock)
        await authenticator.verify(bearer_credentials(token(roles=["admin"])))
        clock.now += MIN_RELOAD_INTERVAL_SECONDS
        provider.answers.clear()
        began = time.perf_counter()
        outcomes = await asyncio.gather(
            *(authenticator.verify(unknown) for _ in range(MAX_WAITING + 10)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {IssuerUnavailable}
        assert time.perf_counter() - began < 4.5
        assert provider.requests == 2
        await authenticator.close()


async def test_withdrawn_key_admits_no_token_that_it_verified(policy: Policy, clock: ManualClock) -> None:
    async with identity_provider(policy) as provider:
        provider.document = jwks(["RS256", "ES256"])
        authenticator = authenticator_of(policy, clock)
        withdrawn = bearer_credentials(token("one", roles=["admin"]))
        await authenticator.verify(withdrawn)
        provider.document = jwks(["ES256"])
        ended = asyncio.Event()
        reloaded = Authenticator(
            read_policy(policy.file), DEFAULT_LIMITS, previous=authenticator, on_withdrawal=ended.set, monotonic=clock
        )
        reloaded.load_keys()
        await reloaded.verify(withdrawn)  # the new key set is not loaded yet
        async with asyncio.timeout(20):
            await ended.wait()
        assert reloaded.cached_identity(withdrawn) is None
        with pytest.raises(CredentialRefused):
            await reloaded.verify(withdrawn)


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def odd(bits: int) -> str:
    """Return an odd number with this number of bits, as in a JWK."""
    return encoded((1 << (bits - 1) | 1).to_bytes((bits + 7) // 8, "big"))


GOOD = {kind: jwks([kind])["keys"][0] for kind in ("RS256", "ES256", "EdDSA")}
UNSOUND_KEYS: dict[str, dict[str, Any]] = {
    "tiny modulus": {**GOOD["RS256"], "n": odd(512)},
    "enormous modulus": {**GOOD["RS256"], "n": odd(10_000)},
    "modulus of a megabit": {**GOOD["RS256"], "n": odd(1_000_000)},
    "enormous exponent": {**GOOD["RS256"], "e": odd(2_040)},
    "exponent of 1": {**GOOD["RS256"], "e": "AQ"},
    "point not on the curve": {**GOOD["ES256"], "y": encoded(bytes(32))},
    "another curve": {**GOOD["ES256"], "crv": "P-384"},
    "unsupported curve": {**GOOD["ES256"], "crv": "secp256k1"},
    "short point": {**GOOD["EdDSA"], "x": encoded(bytes(31))},
    "private key": {**GOOD["RS256"], "d": "AQAB"},
    "published secret": {"kty": "oct", "k": "c2VjcmV0", "kid": "RS256"},
    "for encryption": {**GOOD["RS256"], "use": "enc"},
    "for signing only": {**GOOD["RS256"], "key_ops": ["sign"]},
    "algorithm of another type": {**GOOD["RS256"], "alg": "ES256"},
    "shared-secret algorithm": {**GOOD["RS256"], "alg": "HS256"},
    "key id of a wrong type": {**GOOD["RS256"], "kid": 5},
    "no members": {},
}


@pytest.mark.parametrize("name", UNSOUND_KEYS)
def test_unsound_key_is_ignored_beside_a_good_one(name: str) -> None:
    good = {**GOOD["EdDSA"], "kid": "good"}
    assert list(_parsed(json.dumps({"keys": [UNSOUND_KEYS[name], good]}).encode())) == ["good"]


WRONG_VALUES: list[Any] = [
    5,
    None,
    [],
    {},
    "",
    "!!",
    "AQAB",
    True,
    1.5,
    "\u00e9",
    "\ud800",
    encoded(bytes(300)),
    ["verify"],
]


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(
    "member", ["kty", "crv", "n", "e", "x", "y", "kid", "alg", "use", "key_ops", "d", "p", "oth", "k", "x5c"]
)
def test_wrong_value_in_a_key_never_breaks_its_set(kind: str, member: str) -> None:
    good = {**GOOD["EdDSA"], "kid": "good"}
    for value in WRONG_VALUES:
        keys = _parsed(json.dumps({"keys": [{**GOOD[kind], member: value}, good]}).encode())
        assert "good" in keys
        assert all(key.algorithms for key in keys.values())


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"keys":' + b"[" * 5_000,
        b"\xff",
        b"null",
        b'{"keys":{}}',
        b'{"keys":["a"]}',
        b'{"keys":[' + b"9" * 5_000 + b"]}",
        b'{"keys":[' + b",".join([b"{}"] * 2_000) + b"]}",
    ],
    ids=lambda raw: raw[:12].decode("latin-1"),
)
def test_document_that_is_no_key_set_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"document|decode|JSON|digits|Expecting|codec"):
        _parsed(raw)
