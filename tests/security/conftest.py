"""Fixtures of the security tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.redis_process import RedisProcess
from tests.support.security import Policy
from tests.support.server import Server, running


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    """A policy file with a key for each role."""
    return Policy(tmp_path / "policy")


@pytest.fixture
async def guarded(redis: RedisProcess, policy: Policy) -> AsyncIterator[Server]:
    """A server that authenticates its callers by ``policy``."""
    async with running(redis.url, security=policy.section, health_check={"enabled": True}) as served:
        yield served
