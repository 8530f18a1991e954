"""Fixtures: a registry process, as SDK users start it, and a client of it."""

from collections.abc import AsyncIterator

import pytest

from registry_client import RegistryClient
from registry_client.testing import RegistryProcess
from registry_client.testing.fixtures import registry, registry_process

__all__ = ["client", "registry", "registry_process"]


@pytest.fixture
async def client(registry: RegistryProcess) -> AsyncIterator[RegistryClient]:
    """A client of a registry without services."""
    async with RegistryClient(registry.target, timeout=30) as opened:
        yield opened
