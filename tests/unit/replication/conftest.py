"""Others who use the Redis that a replica follows."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from registry_server.store import StoreLimits
from tests.support.followers import QUICK, Backup, Writer, writing
from tests.support.redis_process import RedisProcess


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> StoreLimits:
    """Limits of a store that notices quickly what happened to Redis."""
    mark = request.node.get_closest_marker("store_limits")
    return replace(QUICK, **mark.kwargs if mark else {})


@pytest.fixture
async def writer(redis: RedisProcess) -> AsyncIterator[Writer]:
    async with writing(redis.url) as other:
        yield other


@pytest.fixture
async def client(redis: RedisProcess) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis.url) as connected:
        yield connected


@pytest.fixture
def backup(redis: RedisProcess, tmp_path: Path) -> Backup:
    return Backup(redis, tmp_path / "redis", tmp_path / "backup")
