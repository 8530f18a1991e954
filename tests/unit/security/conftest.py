"""Fixtures of the security unit tests."""

from pathlib import Path

import pytest

from tests.support.manual_clock import ManualClock
from tests.support.security import Policy


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    """A policy file with a key for each role."""
    return Policy(tmp_path / "policy")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
