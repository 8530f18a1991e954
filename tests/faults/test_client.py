"""The SDK with a fleet of agents, while registries are killed and Redis is restarted or emptied."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from registry_client import (
    NoEndpoint,
    Registration,
    RegistrationState,
    RegistryClient,
    Service,
    ServiceCache,
    make_service,
)
from registry_client.testing import RegistryProcess
from tests.support.redis_process import RedisProcess

REGISTRATIONS = 50
CACHES = 10
RESTARTS = 6
TTL = 30.0
PERIOD = TTL / 3
EMPTIED_WHILE_DOWN = {1, 4}
REDIS_RESTARTED = {2, 5}


class Fleet:
    """Registrations and caches with separate clients, and the failures that user code would see."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.caches: list[ServiceCache] = []
        self.registrations: list[Registration] = []
        self.failures: list[object] = []
        self.states: set[RegistrationState] = set()
        self.picks = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[RegistryClient]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.failures.append(context))
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(RegistryClient(self.target, timeout=30))
            caching = await stack.enter_async_context(RegistryClient(self.target, timeout=30))
            for i in range(REGISTRATIONS):
                registration = await stack.enter_async_context(client.registration(agent(i)))
                registration.on_change(self.states.add)
                self.registrations.append(registration)
            for _ in range(CACHES):
                self.caches.append(await stack.enter_async_context(caching.cache(capability="x")))
            yield client

    @asynccontextmanager
    async def picking(self) -> AsyncIterator[None]:
        """Resolve endpoints continuously within the block. ``NoEndpoint`` counts as a failure."""

        async def pick() -> None:
            while True:
                for cache in self.caches:
                    try:
                        cache.resolve("x")
                        self.picks += 1
                    except NoEndpoint as error:
                        self.failures.append(error)
                await asyncio.sleep(0.01)

        task = asyncio.create_task(pick())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def wait_consistent(self, client: RegistryClient, change: int) -> None:
        """Make a change and wait until all agents are registered and all caches equal the registry."""
        marker = make_service("marker", "http://marker.test", version=f"1.0.{change}", capabilities=["x"], ttl=0)
        await client.register_service(marker)
        while True:
            found = {each.name: each for each in await client.find_services(consistency="strong")}
            if (
                len(found) == REGISTRATIONS + 1
                and all(cache.connected and cache.services == found for cache in self.caches)
                and {each.state for each in self.registrations} == {RegistrationState.REGISTERED}
            ):
                return
            await asyncio.sleep(0.02)


def agent(i: int) -> Service:
    return make_service(
        f"agent-{i:02d}",
        f"http://agent-{i:02d}.test",
        version="1.0.0",
        capabilities=["x@1.0.0"],
        health_check="heartbeat",
        ttl=TTL,
    )


async def flush(redis: RedisProcess) -> None:
    async with Redis.from_url(redis.url) as admin:
        await admin.flushall()


async def timed(awaitable: Any) -> float:
    start = time.monotonic()
    async with asyncio.timeout(60):
        await awaitable
    return time.monotonic() - start


@pytest.mark.timeout(300)
async def test_fleet_survives_killed_registries_and_an_emptied_redis(redis: RedisProcess) -> None:
    took: list[float] = []
    async with RegistryProcess(f"--redis.url={redis.url}") as registry:
        fleet = Fleet(registry.target)
        async with fleet.running() as client:
            await fleet.wait_consistent(client, 0)
            for i in range(RESTARTS):
                if i in EMPTIED_WHILE_DOWN:
                    registry.kill()
                    await flush(redis)
                    await asyncio.to_thread(registry.start)
                else:
                    async with fleet.picking():
                        registry.kill()
                        if i in REDIS_RESTARTED:
                            await redis.restart()
                        await asyncio.to_thread(registry.start)
                        took.append(await timed(fleet.wait_consistent(client, i + 1)))
                    continue
                took.append(await timed(fleet.wait_consistent(client, i + 1)))

            # Emptied while the registry runs: agents notice it with their next heartbeat.
            await flush(redis)
            took.append(await timed(fleet.wait_consistent(client, 100)))

            async with fleet.picking():
                await redis.restart()
                took.append(await timed(fleet.wait_consistent(client, 200)))
            await client.unregister_service("marker")
        assert await all_unregistered(registry)
    assert fleet.failures == []
    assert fleet.picks > 0
    assert RegistrationState.REFUSED not in fleet.states
    assert max(took) <= PERIOD, took


async def all_unregistered(registry: RegistryProcess) -> bool:
    async with RegistryClient(registry.target, timeout=30) as client:
        return await client.find_services() == []
