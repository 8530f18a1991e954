"""``Authenticator``: schemes of credentials and the cache of verified ones."""

import dataclasses
import time

import pytest

from registry_server.security.authenticator import MAX_CACHED_CREDENTIALS, Credentials
from registry_server.security.identity import Role
from registry_server.security.jwt_tokens import CredentialRefused
from tests.support.security import Policy, token
from tests.unit.security.credentials import authenticator_of, bearer_credentials


async def test_verified_identity_is_cached_until_it_expires(policy: Policy) -> None:
    authenticator = authenticator_of(policy)
    policy.jwks_file.unlink()  # from here on, only the cache can answer
    key = bearer_credentials(policy.keys["viewer"])
    assert authenticator.cached_identity(key) is None
    identity = await authenticator.verify(key)
    assert authenticator.cached_identity(key) is identity
    expiring = bearer_credentials(policy.keys["agent"])
    await authenticator.verify(expiring)
    expired = time.time() - 1
    for cache_key, identity in list(authenticator._cache.items()):
        authenticator._cache[cache_key] = dataclasses.replace(identity, expires=expired)
    assert authenticator.cached_identity(expiring) is None


async def test_cache_is_bounded_and_contains_no_credential(policy: Policy) -> None:
    policy.document["anonymous"] = "viewer"
    authenticator = authenticator_of(policy)
    for i in range(MAX_CACHED_CREDENTIALS + 50):
        await authenticator.verify(Credentials(certificate=(("dns", f"{i}.test"),)))
    assert len(authenticator._cache) == MAX_CACHED_CREDENTIALS
    credentials = bearer_credentials(policy.keys["admin"])
    await authenticator.verify(credentials)
    assert policy.keys["admin"] not in repr(vars(authenticator)) + repr(credentials)


async def test_credential_in_use_is_not_evicted_by_cold_ones(policy: Policy) -> None:
    policy.document["anonymous"] = "viewer"
    authenticator = authenticator_of(policy)
    hot = bearer_credentials(policy.keys["agent"])
    identity = await authenticator.verify(hot)
    for i in range(MAX_CACHED_CREDENTIALS + 50):
        await authenticator.verify(Credentials(certificate=(("dns", f"{i}.test"),)))
        if i % 1_000 == 0:
            assert authenticator.cached_identity(hot) is identity
    assert authenticator.cached_identity(hot) is identity


async def test_refused_credentials_are_not_cached(policy: Policy) -> None:
    authenticator = authenticator_of(policy)
    known = bearer_credentials(policy.keys["agent"])
    identity = await authenticator.verify(known)
    for i in range(MAX_CACHED_CREDENTIALS + 50):
        with pytest.raises(CredentialRefused):
            await authenticator.verify(Credentials(api_key=f"unknown-{i}"))
    assert len(authenticator._cache) == 1
    assert authenticator.cached_identity(known) is identity


async def test_missing_credential_is_anonymous(policy: Policy) -> None:
    assert (await authenticator_of(policy).verify(Credentials())).role is Role.NONE
    assert (await authenticator_of(policy).verify(Credentials(authorization=""))).role is Role.NONE


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer ", "Basic abc", "bearer\tx", "Bearer  "])
async def test_malformed_bearer_credential_is_refused(authorization: str, policy: Policy) -> None:
    with pytest.raises(CredentialRefused):
        await authenticator_of(policy).verify(Credentials(authorization=authorization))


async def test_spellings_of_one_credential_share_its_cache_entry(policy: Policy) -> None:
    authenticator = authenticator_of(policy)
    for credential in (token(roles=["admin"]), policy.keys["agent"]):
        cached = len(authenticator._cache)
        for spelling in ("Bearer {}", "bearer {}", "BEARER   {}", "Bearer {} "):
            credentials = Credentials(authorization=spelling.format(credential))
            identity = await authenticator.verify(credentials)
            assert identity.role in {Role.ADMIN, Role.AGENT}
        assert len(authenticator._cache) == cached + 1
    with pytest.raises(CredentialRefused):
        await authenticator.verify(bearer_credentials(token(roles=["admin"]) + "!"))


async def test_certificate_name_with_control_characters_matches_no_rule(policy: Policy) -> None:
    policy.document["certificates"] = [{"common_name": "agent*", "role": "admin"}]
    authenticator = authenticator_of(policy)
    assert (await authenticator.verify(Credentials(certificate=(("common_name", "agent-1"),)))).role is Role.ADMIN
    for name in ("agent\0", "agent\n", "agent\ud800"):
        with pytest.raises(CredentialRefused):
            await authenticator.verify(Credentials(certificate=(("common_name", name),)))
