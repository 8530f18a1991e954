"""Fixtures that every kind of test may use."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from registry_server.store import StoreLimits
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running
from tests.support.shared_redis import SharedRedis

# No deadline: a busy machine must not fail a test.
# CI always runs the same examples, so that its result is reproducible.
settings.register_profile("any machine", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("quick", settings.get_profile("any machine"), max_examples=20)
settings.load_profile("any machine")

# Tests start hundreds of Python processes. With cached bytecode each starts 0.1 s faster, and collection takes half the
# time.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell ignores SIGINT in its background jobs, and processes that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Folders whose tests wait for processes, leases and failovers most of the time.
WAITING = ("faults", "examples", "deploy", "e2e", "client", "cli")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each process of pytest-xdist start with tests that wait, so that they overlap with tests that compute.

    xdist gives each process a contiguous part of the list, and moves tests from the end of one part to idle processes.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    waiting: dict[tuple[int, Path], list[pytest.Item]] = {}
    computing: list[pytest.Item] = []
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in WAITING:
            waiting.setdefault((WAITING.index(folder), item.path), []).append(item)
        else:
            computing.append(item)
    parts: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for number, module in enumerate(sorted(waiting)):
        parts[number % processes].extend(waiting[module])
    length = -(-len(items) // processes)
    for part in parts:
        missing = max(length - len(part), 0)
        part.extend(computing[:missing])
        del computing[:missing]
    items[:] = [item for part in (*parts, computing) for item in part]


@pytest.fixture(scope="session")
def shared_redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRedis]:
    """One redis-server for the whole run; see ``redis``."""
    with SharedRedis(tmp_path_factory.mktemp("shared-redis")) as process:
        yield process


@pytest.fixture
def shared_redis(shared_redis_process: SharedRedis) -> SharedRedis:
    """The shared redis-server, as empty as a fresh one."""
    shared_redis_process.reset()
    return shared_redis_process


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisProcess]:
    """A fresh redis-server for this test alone, with its data in ``tmp_path / "redis"``."""
    async with RedisProcess(tmp_path / "redis") as process:
        yield process


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> RedisProcess:
    """An empty redis-server: the shared one, or a fresh one for tests marked ``own_redis``, which may stop it."""
    own = request.node.get_closest_marker("own_redis") is not None
    process: RedisProcess = request.getfixturevalue("own_redis" if own else "shared_redis")
    return process


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> StoreLimits:
    """The limits of stores; a test changes some with ``@pytest.mark.store_limits(page=4)``."""
    mark = request.node.get_closest_marker("store_limits")
    return StoreLimits(**mark.kwargs if mark else {})


@pytest.fixture
async def server(redis: RedisProcess) -> AsyncIterator[Server]:
    """A server on an empty Redis, and a client of it."""
    async with running(redis.url) as served:
        yield served
