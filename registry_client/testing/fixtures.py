"""pytest fixtures. Enable them in ``conftest.py``: ``pytest_plugins = ["registry_client.testing.fixtures"]``."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from registry_client.errors import ServiceNotFound
from registry_client.sync import SyncRegistryClient
from registry_client.testing.process import RegistryProcess


@pytest.fixture(scope="session")
def registry_process() -> Iterator[RegistryProcess]:
    """One registry process for all tests; ``registry`` is the same process without any services."""
    with RegistryProcess() as process:
        yield process


@pytest.fixture
def registry(registry_process: RegistryProcess) -> RegistryProcess:
    """A registry without services; its address is ``registry.target``. A test may kill and restart it."""
    if not registry_process.running:
        registry_process.start()  # the previous test stopped it
    with SyncRegistryClient(registry_process.target) as client:
        for service in client.find_services():
            with suppress(ServiceNotFound):  # its lease expired meanwhile
                client.unregister_service(service.name)
    return registry_process
