"""Planned ends of streams, which are not reported: rolling restarts of workers and expired tokens."""

import asyncio
import itertools
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

from registry_client import Registration, RegistrationState, RegistryClient, Service, ServiceCache, make_service
from tests.support.redis_process import RedisProcess
from tests.support.security import Policy, token
from tests.support.server import ServerProcess, running
from tests.support.waiting import until

REGISTERED = RegistrationState.REGISTERED


def agent(name: str) -> Service:
    return make_service(name, f"http://{name}.test", version="1.0.0", health_check="heartbeat", ttl=30)


class Interruptions:
    """The failures that a registration and a cache report."""

    def __init__(self, registration: Registration, cache: ServiceCache) -> None:
        self.found: list[object] = []
        registration.on_change(lambda state: self.found.append((registration.name, state, registration.error)))
        self._cache = cache

    async def observe(self, done: asyncio.Event) -> None:
        while not done.is_set():
            if not self._cache.connected or self._cache.last_error is not None:
                self.found.append(("cache", self._cache.last_error))
            await asyncio.sleep(0.005)


async def test_rolling_restart_of_workers_is_not_reported(redis: RedisProcess) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}", "--workers=2", "--shutdown.grace-seconds=5") as server,
        AsyncExitStack() as stack,
        asyncio.TaskGroup() as group,
    ):
        done, observed, clients = asyncio.Event(), [], []
        for i in range(6):  # each on a connection of its own, so that both workers have some
            client = await stack.enter_async_context(RegistryClient(server.grpc_address, timeout=30))
            registration = await stack.enter_async_context(client.registration(agent(f"agent-{i}"), sigterm=False))
            observed.append(Interruptions(registration, await stack.enter_async_context(client.cache())))
            group.create_task(observed[-1].observe(done))
            clients.append((client, registration))
        server.signal(signal.SIGUSR2)
        await server.logged("all workers restarted")
        late = await clients[0][0].register_service(agent("late"))
        for client, registration in clients:  # their streams work
            assert (await client.get_service("late")).revision == late.revision
            registration._lease.due = 0
            registration._leases._wake.set()
        await until(lambda: all(registration._lease.due > 0 for _, registration in clients))
        done.set()
        assert [each.found for each in observed] == [[]] * 6
    drained = [line for line in server.log if line["event"] == "drained"][:2]
    assert sum(line["keep_alive_streams"] for line in drained) >= 6
    assert sum(line["watches"] for line in drained) >= 6
    assert [line for line in server.log if line.get("code") == "UNAVAILABLE"] == []


async def test_renewed_token_is_not_reported(redis: RedisProcess, tmp_path: Path) -> None:
    issued = itertools.count()

    def new_token() -> str:
        next(issued)
        return token("fleet-agent", roles=["operator"], exp=int(time.time()) + 2)

    policy = Policy(tmp_path)
    async with (
        running(redis.url, security=policy.section) as server,
        RegistryClient(server.grpc_address, token=new_token, timeout=30) as client,
        client.registration(agent("fleet-agent"), sigterm=False) as registration,
        client.cache() as cache,
        asyncio.TaskGroup() as group,
    ):
        done, interruptions = asyncio.Event(), Interruptions(registration, cache)
        group.create_task(interruptions.observe(done))
        first = next(issued)
        await until(lambda: server.parts.hub.counters.started["cursor"] >= 2)  # resumed after two expiries
        await until(lambda: next(issued) > first)
        done.set()
        assert interruptions.found == []


async def test_token_function_that_fails_is_a_refusal(redis: RedisProcess, tmp_path: Path) -> None:
    available = True

    def new_token() -> str:
        if not available:
            raise OSError("the vault is away")
        return token("fleet-agent", roles=["operator"], exp=int(time.time()) + 2)

    async with (
        running(redis.url, security=Policy(tmp_path).section) as server,
        RegistryClient(server.grpc_address, token=new_token) as client,
        client.registration(agent("fleet-agent"), sigterm=False) as registration,
    ):
        available = False
        await until(lambda: registration.state is RegistrationState.REFUSED)
        assert "the vault is away" in str(registration.error)
        available = True
        await until(lambda: registration.state is REGISTERED)


async def test_registry_that_does_not_come_back_is_reported(redis: RedisProcess) -> None:
    async with ServerProcess(f"--redis.url={redis.url}") as server, RegistryClient(server.grpc_address) as client:
        registration = client.registration(agent("agent"), sigterm=False)
        async with registration, client.cache() as cache:
            await server.stop()
            await until(lambda: registration.state is RegistrationState.AWAY and not cache.connected)
            assert cache.last_error is not None
    assert not registration.removed
