"""Fixtures that every kind of test may use."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    """A fresh redis-server, for this test alone."""
    async with RedisProcess(tmp_path / "redis") as process:
        yield process


@pytest.fixture
async def server(redis: RedisProcess) -> AsyncIterator[Server]:
    """A server on a fresh Redis, and a client of it."""
    async with running(redis.url) as served:
        yield served
