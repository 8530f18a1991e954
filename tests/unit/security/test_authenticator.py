"""``Authenticator``: schemes of credentials and the cache of verified ones."""

import dataclasses
import time

import pytest

from registry_server.security.authenticator import MAX_CACHED_CREDENTIALS, Credentials
from registry_server.security.identity import Role
from registry_server.security.jwt_tokens import CredentialRefused
from tests.support.security import Policy
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
    authenticator._cache = {k: dataclasses.replace(each, expires=expired) for k, each in authenticator._cache.items()}
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


async def test_missing_credential_is_anonymous(policy: Policy) -> None:
    assert (await authenticator_of(policy).verify(Credentials())).role is Role.NONE
    assert (await authenticator_of(policy).verify(Credentials(authorization=""))).role is Role.NONE


@pytest.mark.parametrize("authorization", ["Bearer", "Bearer ", "Basic abc", "bearer\tx", "Bearer  "])
async def test_malformed_bearer_credential_is_refused(authorization: str, policy: Policy) -> None:
    with pytest.raises(CredentialRefused):
        await authenticator_of(policy).verify(Credentials(authorization=authorization))
