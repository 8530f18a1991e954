"""Fixtures that every kind of test may use."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running

# A machine that is busy is not a failure; and what a build is told must not depend on the dice of that day.
settings.register_profile("any machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("any machine")

# Where the tests run in the background of a shell SIGINT is ignored, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
