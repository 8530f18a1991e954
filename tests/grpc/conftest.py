"""Fixtures of the gRPC tests."""

from collections.abc import AsyncIterator

import pytest

from registry_server.probes import pause_detector
from tests.grpc.probing import ON_DEMAND, probing_with
from tests.support.endpoints import Agent, agents
from tests.support.redis_process import RedisProcess
from tests.support.server import Server


@pytest.fixture
def no_pause_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the pause detector: on a busy machine it would discard probes that a test counts."""
    monkeypatch.setattr(pause_detector, "_MIN_PAUSE_SECONDS", 600.0)


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    async with agents(1) as [created]:
        yield created


@pytest.fixture
async def probing(redis: RedisProcess) -> AsyncIterator[Server]:
    """A server that probes each service once, and after that only on demand."""
    async with probing_with(redis, **ON_DEMAND) as served:
        yield served
