"""Other users of the Redis that a follower follows."""

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
    """Short store limits; the marker ``store_limits`` overrides single ones."""
    mark = request.node.get_closest_marker("store_limits")
    return replace(QUICK, **mark.kwargs if mark else {})


@pytest.fixture
async def writer(redis: RedisProcess) -> AsyncIterator[Writer]:
    async with writing(redis.url) as writer:
        yield writer


@pytest.fixture
async def client(redis: RedisProcess) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis.url) as connected:
        yield connected


@pytest.fixture
def backup(redis: RedisProcess, tmp_path: Path) -> Backup:
    return Backup(redis, tmp_path / "redis", tmp_path / "backup")
