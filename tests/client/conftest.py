"""A registry for the tests of the SDK, as its users get it, and clients of it."""

from collections.abc import AsyncIterator

import pytest

from registry_client import RegistryClient
from registry_client.testing import RegistryProcess
from registry_client.testing.fixtures import registry, registry_process

__all__ = ["client", "registry", "registry_process"]


@pytest.fixture
async def client(registry: RegistryProcess) -> AsyncIterator[RegistryClient]:
    """A client of a registry in which nothing is registered."""
    async with RegistryClient(registry.target, timeout=30) as made:
        yield made
