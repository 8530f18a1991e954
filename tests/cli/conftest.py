"""A registry, and the command line that talks to it."""

from pathlib import Path

import pytest

from registry_client.testing import RegistryProcess
from registry_client.testing.fixtures import registry, registry_process
from tests.cli.program import Program

__all__ = ["program", "registry", "registry_process"]


@pytest.fixture
def program(registry: RegistryProcess, tmp_path: Path) -> Program:
    """The command line, with a registry in which nothing is registered."""
    return Program(registry.target, tmp_path)
