"""Fixtures of the tests of security."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.redis_process import RedisProcess
from tests.support.security import Policy
from tests.support.server import Server, running


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path / "policy")


@pytest.fixture
async def guarded(redis: RedisProcess, policy: Policy) -> AsyncIterator[Server]:
    """A server that asks who calls."""
    async with running(redis.url, security=policy.section, health_check={"enabled": True}) as served:
        yield served
