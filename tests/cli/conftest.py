"""Fixtures: a registry process, and the command line configured to call it."""

from pathlib import Path

import pytest

from registry_client.testing import RegistryProcess
from registry_client.testing.fixtures import registry, registry_process
from tests.cli.program import Program

__all__ = ["program", "registry", "registry_process"]


@pytest.fixture
def program(registry: RegistryProcess, tmp_path: Path) -> Program:
    """The command line, configured for a registry without services."""
    return Program(registry.target, tmp_path)
