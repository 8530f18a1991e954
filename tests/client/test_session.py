"""Session consistency: a client reads its own writes, whichever process responds."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from registry_client import RegistryClient, Service, StoreUnavailable, make_service
from registry_client.calls import Session
from tests.support.redis_process import RedisProcess
from tests.support.server import ServerProcess


def agent(name: str) -> Service:
    return make_service(name, f"http://{name}.test", version="1.0.0")


async def flush_redis(redis: RedisProcess) -> None:
    async with Redis.from_url(redis.url) as admin:
        await admin.flushall()


async def test_write_on_one_process_is_read_from_another(redis: RedisProcess) -> None:
    url = f"--redis.url={redis.url}"
    async with (
        ServerProcess(url) as first,
        ServerProcess(url) as second,
        RegistryClient([first.grpc_address, second.grpc_address], timeout=30) as client,
    ):
        for i in range(20):
            written = await client.register_service(agent(f"agent-{i}"))
            client._channels.fail_over(client.target)
            assert await client.get_service(f"agent-{i}") == written


async def test_client_fails_over_to_a_process_that_holds_the_revision(redis: RedisProcess, tmp_path: Path) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}") as current,
        ServerProcess("--redis.url=embedded", f"--data-dir={tmp_path}/d") as behind,
        RegistryClient(current.grpc_address, timeout=30) as writer,
        RegistryClient([behind.grpc_address, current.grpc_address], timeout=30) as reader,
    ):
        written = await writer.register_service(agent("agent"))
        reader._session.observe_revision(written.revision)
        assert await reader.get_service("agent") == written
        assert reader.target == current.grpc_address


async def test_reads_continue_after_the_store_was_replaced(redis: RedisProcess) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}", "--redis.repair=false") as process,
        RegistryClient(process.grpc_address, timeout=30) as client,
    ):
        for i in range(10):
            await client.register_service(agent(f"agent-{i}"))
        assert client.revision == 10
        await flush_redis(redis)
        await process.logged("resynchronised with the store")
        assert await client.find_services() == []
        assert client.revision < 10


@pytest.mark.own_redis
async def test_write_is_retried_until_the_store_is_back(redis: RedisProcess) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}") as process,
        RegistryClient(process.grpc_address, timeout=60) as client,
    ):
        await client.register_service(agent("first"))
        redis.kill()
        await process.logged("store disconnected")
        with pytest.raises(StoreUnavailable):
            await client.register_service(agent("second"), timeout=0.2)
        writing = asyncio.create_task(client.register_service(agent("second")))
        await redis.restart()
        assert (await writing).revision == client.revision


async def test_session_can_be_disabled(redis: RedisProcess) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}") as process,
        RegistryClient(process.grpc_address, session=False) as client,
    ):
        await client.register_service(agent("agent"))
        assert client.revision == 0


def test_session_keeps_the_highest_revision() -> None:
    session = Session(enabled=True)
    for revision in (3, 7, 5):
        session.observe_revision(revision)
    assert session.revision == 7
    session.reset_revision(2)
    assert session.revision == 2
