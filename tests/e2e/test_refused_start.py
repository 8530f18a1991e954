"""What cannot work ends the program at start with exit code 2 and one sentence; what may be temporary does not."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import RegistryClient
from registry_server import open_registry
from registry_server.errors import ConfigurationError
from tests.support.processes import children_of, command_of, run_to_end
from tests.support.redis_process import RedisProcess, free_port
from tests.support.samples import small_service
from tests.support.security import registry_acl
from tests.support.server import ServerProcess, connected, settings

TIMEOUT = 90.0
PASSWORD = "secret"

pytestmark = pytest.mark.slow


def admin(redis: RedisProcess) -> Any:
    return Redis.from_url(redis.url, decode_responses=True)


async def set_rights(redis: RedisProcess, *changes: str) -> str:
    """Give the registry's user the documented rights with changes, and return its URL."""
    async with admin(redis) as client:
        await client.execute_command("ACL", "SETUSER", "registry", *registry_acl(PASSWORD), *changes)
    return redis.url.replace("//", f"//registry:{PASSWORD}@")


async def run_until_refused(*flags: str) -> list[str]:
    """Run a server that must fail to start, and return the lines of its output that are not log records."""
    code, output = await run_to_end(
        Path(sys.executable).with_name("ossa-registry"),
        "serve",
        "--grpc.address=127.0.0.1:0",
        "--http.address=127.0.0.1:0",
        *flags,
        max_seconds=TIMEOUT,
    )
    assert code == 2, output
    return [line for line in output.splitlines() if not line.startswith("{")]


async def refused_right(redis: RedisProcess) -> str:
    return await set_rights(redis, "-time")


async def refused_password(redis: RedisProcess) -> str:
    return await set_rights(redis, "resetpass", ">other")


async def refused_info(redis: RedisProcess) -> str:
    return await set_rights(redis, "-info")


async def key_of_another_type(redis: RedisProcess) -> str:
    async with admin(redis) as client:
        await client.set("ossa:registry:leases", "x")
    return redis.url


async def newer_format(redis: RedisProcess) -> str:
    async with admin(redis) as client:
        await client.set("ossa:registry:format", "1000")
    return redis.url


REFUSED: dict[str, tuple[Callable[[RedisProcess], Awaitable[str]], str]] = {
    "a right": (refused_right, "redis.url: Redis refuses TIME: "),
    "INFO": (refused_info, "redis.url: Redis refuses INFO: NOPERM "),
    "a password": (refused_password, "redis.url: Redis refuses AUTH: WRONGPASS "),
    "a key of another type": (key_of_another_type, "on ossa:registry:leases: WRONGTYPE "),
    "a newer format": (newer_format, "ossa:registry:format is 1000: a newer version of ossa-registry wrote this data"),
}


@pytest.mark.parametrize(
    ("workers", "prepare", "cause"),
    [(1, *each) for each in REFUSED.values()] + [(2, *REFUSED["a right"]), (2, *REFUSED["a newer format"])],
    ids=[*REFUSED, "a right, with workers", "a newer format, with workers"],
)
async def test_start_ends_with_code_2_and_one_sentence(
    redis: RedisProcess, workers: int, prepare: Callable[[RedisProcess], Awaitable[str]], cause: str
) -> None:
    url = await prepare(redis)

    (line,) = await run_until_refused(f"--redis.url={url}", f"--workers={workers}")

    assert line.startswith("ossa-registry: redis.url: ")
    assert cause in line
    assert PASSWORD not in line


@pytest.mark.parametrize("workers", [1, 2])
async def test_damaged_data_of_the_embedded_redis_ends_the_start(tmp_path: Path, workers: int) -> None:
    (tmp_path / "appendonly.aof").write_text("this is no append-only file\n" * 10)

    (line,) = await run_until_refused(f"--data-dir={tmp_path}", f"--workers={workers}")

    assert line.startswith(f"ossa-registry: data_dir: {tmp_path}: ")
    assert "Bad file format reading the append only file" in line
    assert "--fix" in line


@pytest.mark.parametrize("prepare", [refused_right, key_of_another_type])
async def test_embedded_use_raises_the_error_without_a_group(
    redis: RedisProcess, prepare: Callable[[RedisProcess], Awaitable[str]]
) -> None:
    url = await prepare(redis)

    async with asyncio.timeout(TIMEOUT):
        with pytest.raises(ConfigurationError, match=r"^redis\.url: Redis refuses "):
            await open_registry(settings(url))


@pytest.mark.parametrize("workers", [1, 2])
async def test_start_waits_for_redis_and_ends_if_redis_then_refuses(tmp_path: Path, workers: int) -> None:
    port = free_port()
    redis = RedisProcess(tmp_path, "--rename-command", "HSCAN", "", "--appendonly", "no", ports=[port] * 100)
    waiting = asyncio.create_task(run_until_refused(f"--redis.url=redis://127.0.0.1:{port}", f"--workers={workers}"))
    done, _ = await asyncio.wait([waiting], timeout=4)
    assert not done
    async with redis:
        (line,) = await waiting
    assert "Redis refuses HSCAN" in line


async def test_restarted_workers_wait_for_a_right_that_was_revoked(redis: RedisProcess) -> None:
    """Workers that serve keep serving reads; the one that cannot start again says so once."""
    url = await set_rights(redis)
    async with ServerProcess(f"--redis.url={url}", "--workers=2") as server, admin(redis) as client:
        await client.execute_command("ACL", "SETUSER", "registry", "-hscan")
        workers = [child for child in children_of(server.pid) if "workers.worker" in command_of(child)]
        os.kill(workers[0], signal.SIGKILL)
        refused = await server.logged("worker cannot start with these settings")
        assert "HSCAN" in refused["reason"]
        await asyncio.sleep(3)
        assert [line["event"] for line in server.log].count("worker cannot start with these settings") == 1
        async with RegistryClient(server.grpc_address) as reader:
            assert (await reader.discover_services()).services == []
        await client.execute_command("ACL", "SETUSER", "registry", "+hscan")
        server.log.clear()
        server.signal(signal.SIGUSR2)
        await server.logged("all workers restarted")


async def test_serving_registry_ends_when_its_data_has_a_newer_format(redis: RedisProcess) -> None:
    async with ServerProcess(f"--redis.url={redis.url}") as server, admin(redis) as client:
        await client.set("ossa:registry:format", "1000")
        await client.client_kill_filter(_type="normal")
        assert await server.wait() == 2
        assert "a newer version of ossa-registry wrote this data" in server.log[-1]["event"]


async def test_documented_rights_suffice_for_workers_sweeps_and_repairs(redis: RedisProcess) -> None:
    url = await set_rights(redis)
    async with admin(redis) as client:
        await client.execute_command("ACL", "LOG", "RESET")
        async with (
            ServerProcess(f"--redis.url={url}", "--workers=2", "--health-check.enabled=true") as server,
            connected(server.grpc_address) as (_, stub),
        ):
            short = small_service("short")
            short.ttl.FromSeconds(5)
            await stub.RegisterService(pb.RegisterServiceRequest(service=short))
            await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("kept")))
            await stub.Heartbeat(pb.HeartbeatRequest(names=["kept"]))
            await server.logged("leases expired")
            await client.flushall()
            await server.logged("store repaired from memory")
            async with asyncio.timeout(TIMEOUT):
                while not await client.hexists("ossa:registry:records", "kept"):
                    await asyncio.sleep(0.02)
            await stub.UnregisterService(pb.UnregisterServiceRequest(name="kept"))
        assert await client.execute_command("ACL", "LOG") == []


async def revoke_all(redis: RedisProcess) -> None:
    await set_rights(redis, "-@all")


async def kill(redis: RedisProcess) -> None:
    redis.kill()


async def pause(redis: RedisProcess) -> None:
    redis.pause()


@pytest.mark.own_redis
@pytest.mark.parametrize("fail", [revoke_all, kill, pause])
async def test_stop_without_redis_shows_no_traceback(
    redis: RedisProcess, fail: Callable[[RedisProcess], Awaitable[None]]
) -> None:
    url = await set_rights(redis)
    async with ServerProcess(f"--redis.url={url}", "--health-check.enabled=true", "--redis.timeout-ms=500") as server:
        await fail(redis)
        await asyncio.sleep(2)
        assert await server.stop() == 0
    assert [line for line in server.log if "level" not in line] == [], "every line is a log record"
    assert "Traceback" not in str(server.log)
    assert server.log[-1]["event"] == "stopped"
