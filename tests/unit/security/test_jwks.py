"""``KeySet``: keys from the URL of an identity provider."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from registry_server.errors import IssuerUnavailable
from registry_server.security.identity import Role
from registry_server.security.jwks import MAX_STALE_SECONDS, MIN_RELOAD_INTERVAL_SECONDS, REFRESH_SECONDS
from registry_server.security.jwt_tokens import CredentialRefused
from tests.support.security import Policy, jwks, token
from tests.unit.security.credentials import authenticator_of, bearer_credentials
from tests.unit.security.manual_clock import ManualClock


class IdentityProvider:
    """Serves a JWK Set, or ``document`` with ``status``."""

    def __init__(self) -> None:
        self.document: Any = jwks(["RS256"])
        self.status = 200
        self.requests = 0

    async def serve(self, _: web.Request) -> web.StreamResponse:
        self.requests += 1
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
        assert provider.requests == requests + 1
        clock.now += MAX_STALE_SECONDS
        with pytest.raises(IssuerUnavailable):
            await authenticator.verify(bearer_credentials(token("third", roles=["admin"])))


async def test_unreachable_provider_makes_the_issuer_unavailable(policy: Policy) -> None:
    async with identity_provider(policy):
        pass
    with pytest.raises(IssuerUnavailable):
        await authenticator_of(policy).verify(bearer_credentials(token(roles=["admin"])))
