"""Fixtures of the tests through gRPC."""

from collections.abc import AsyncIterator

import pytest

from registry_server.probes import pause_detector
from tests.grpc.probing import ON_DEMAND, probing_with
from tests.support.endpoints import Agent, agents
from tests.support.redis_process import RedisProcess
from tests.support.server import Server


@pytest.fixture
def never_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine this process may not run for a while; rightly no probe counts then, but here each must."""
    monkeypatch.setattr(pause_detector, "_LONGEST_GAP", 600.0)


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with agents(1) as [made]:
        yield made


@pytest.fixture
async def probing(redis: RedisProcess) -> AsyncIterator[Server]:
    """A server that probes each service once by itself, and then on demand."""
    async with probing_with(redis, **ON_DEMAND) as served:
        yield served
