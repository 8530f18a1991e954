"""Conditions of Redis that an operator must correct, as problems of the process."""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis.asyncio

from registry_server.instrumentation.problems import Problems
from registry_server.store.counters import StoreCounters
from registry_server.store.vitals import Vitals
from tests.support.redis_process import RedisProcess, find_redis_server
from tests.support.waiting import TIMEOUT_SECONDS


@pytest.fixture
async def client(redis_process: RedisProcess) -> AsyncIterator["redis.asyncio.Redis"]:
    async with redis.asyncio.Redis.from_url(redis_process.url) as opened:
        yield opened


@pytest.fixture
def problems() -> Problems:
    return Problems()


@pytest.fixture
def counters() -> StoreCounters:
    return StoreCounters()


@pytest.fixture
def vitals(client: "redis.asyncio.Redis", counters: StoreCounters, problems: Problems) -> Vitals:
    return Vitals(client, counters, problems, disk="the disk of /data")


async def until_sampled(vitals: Vitals, condition: Callable[[], bool]) -> None:
    """Sample until a condition holds."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():
            await vitals.sample()
            await asyncio.sleep(0.05)


async def test_healthy_redis_has_no_problem(vitals: Vitals, problems: Problems, counters: StoreCounters) -> None:
    await vitals.sample()

    assert problems.active == {}
    assert counters.memory is not None
    assert counters.memory.persistence_ok


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
async def test_policy_that_evicts_is_a_problem_until_it_is_changed(
    vitals: Vitals, problems: Problems, client: "redis.asyncio.Redis", policy: str
) -> None:
    await client.config_set("maxmemory-policy", policy)
    await vitals.sample()
    assert f"maxmemory-policy is {policy}: " in problems.active["store_maxmemory_policy"]

    await client.config_set("maxmemory-policy", "noeviction")
    await vitals.sample()
    assert problems.active == {}


@pytest.fixture
async def full_disk(tmp_path: Path) -> AsyncIterator[tuple[RedisProcess, Callable[..., None]]]:
    """A Redis, and a function that fills its disk or frees it: the kernel limits the size of its files."""
    program = tmp_path / "redis-server"
    # Without the trap the limit would kill it; a full disk only makes write() fail.
    program.write_text(f"#!/bin/sh\ntrap '' XFSZ\nexec {find_redis_server()} \"$@\"\n")
    program.chmod(0o700)
    async with RedisProcess(tmp_path / "redis", binary=program) as process:
        _, limit = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)

        def fill(*, full: bool) -> None:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1 if full else limit, limit))

        yield process, fill


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "status"),
    [(("SET", "key", "value"), "aof_last_write_status"), (("BGSAVE",), "rdb_last_bgsave_status")],
)
async def test_full_disk_is_a_problem_until_redis_can_write(
    full_disk: tuple[RedisProcess, Callable[..., None]],
    problems: Problems,
    counters: StoreCounters,
    command: tuple[str, ...],
    status: str,
) -> None:
    process, fill = full_disk
    async with redis.asyncio.Redis.from_url(process.url) as client:
        vitals = Vitals(client, counters, problems, disk="the disk of /data")
        await client.set("key", "value" * 1000)
        fill(full=True)
        await client.execute_command(*command)  # type: ignore[no-untyped-call]

        await until_sampled(vitals, lambda: f"{status} is err" in problems.active.get("store_persistence", ""))
        assert problems.active["store_persistence"].endswith("free space on the disk of /data")
        assert counters.memory is not None
        assert not counters.memory.persistence_ok

        fill(full=False)
        await client.bgsave()
        await until_sampled(vitals, lambda: problems.active == {})


async def test_refused_info_is_a_problem_and_an_absent_redis_is_not(
    redis_process: RedisProcess, client: "redis.asyncio.Redis", counters: StoreCounters, problems: Problems
) -> None:
    rules = ("on", ">secret", "~*", "+@all", "-info")
    await client.execute_command("ACL", "SETUSER", "agent", *rules)  # type: ignore[no-untyped-call]
    async with redis.asyncio.Redis.from_url(redis_process.url.replace("//", "//agent:secret@")) as restricted:
        vitals = Vitals(restricted, counters, problems, "the disk of /data")
        await vitals.sample()
        assert "INFO: NOPERM" in problems.active["store_info"]
        assert counters.memory is None
        await client.execute_command("ACL", "SETUSER", "agent", "+info")  # type: ignore[no-untyped-call]
        await vitals.sample()
        assert problems.active == {}
    async with redis.asyncio.Redis.from_url("redis://127.0.0.1:1") as absent:
        await Vitals(absent, counters, problems, "the disk of /data").sample()
    assert problems.active == {}
