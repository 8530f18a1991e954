"""The procedure of docs/upgrading.md: two registries are restarted one after the other under a client."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from registry_client import EventType, RegistryClient, Watch, make_service
from tests.deploy.test_nginx import two_registries
from tests.support.redis_process import RedisProcess
from tests.support.server import ServerProcess


@pytest.mark.slow
async def test_rolling_restart_loses_no_change_and_no_lease(redis: RedisProcess) -> None:
    service = make_service("agent", "http://agent.test", version="1.0.0", health_check="heartbeat", ttl=30)
    names = [f"task-{i}" for i in range(12)]
    async with two_registries(redis, "--shutdown.grace-seconds=5") as servers:
        targets = [server.grpc_address for server in servers]
        async with (
            RegistryClient(targets, timeout=30) as client,
            RegistryClient(targets, timeout=30) as writer,
            client.registration(service) as registration,
            client.watch() as watch,
        ):
            seen = asyncio.create_task(registered_names(watch, len(names)))
            while not watch.cursor:
                await asyncio.sleep(0.01)
            writes = asyncio.create_task(register_all(writer, names))
            async with restarted(servers[0], redis), restarted(servers[1], redis):
                async with asyncio.timeout(60):
                    await writes
                    assert await seen == names
                assert registration.state.value == "registered"
                assert (await client.get_service("agent")).name == "agent"


@asynccontextmanager
async def restarted(old: ServerProcess, redis: RedisProcess) -> AsyncIterator[ServerProcess]:
    """End a registry with SIGTERM and start its successor on the same address; return once it serves."""
    address = old.grpc_address
    old.signal(signal.SIGTERM)
    assert await old.wait() == 0
    async with ServerProcess(f"--redis.url={redis.url}", f"--grpc.address={address}") as successor:
        assert successor.grpc_address == address
        yield successor


async def register_all(client: RegistryClient, names: list[str]) -> None:
    for name in names:
        await client.register_service(make_service(name, "http://task.test", version="1.0.0", health_check="none"))
        await asyncio.sleep(0.2)


async def registered_names(watch: Watch, count: int) -> list[str]:
    names: list[str] = []
    async for event in watch:
        if event.type == EventType.EVENT_TYPE_SERVICE_REGISTERED and event.service.name.startswith("task-"):
            names.append(event.service.name)
        if len(names) == count:
            break
    return names
