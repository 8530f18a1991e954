"""Unresponsive registries, which accept connections but send no responses; and clients closed during use."""

import asyncio
import signal
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from registry_client import (
    InvalidRequest,
    RegistrationState,
    RegistryClient,
    RegistryUnavailable,
    Service,
    ServiceNotFound,
    make_service,
)
from registry_client.testing import RegistryProcess
from tests.support.redis_process import RedisProcess
from tests.support.server import ServerProcess
from tests.support.waiting import until


def agent(name: str = "agent") -> Service:
    return make_service(name, f"http://{name}.test", version="1.0.0", health_check="heartbeat", ttl=6)


class Pair(NamedTuple):
    first: ServerProcess
    second: ServerProcess

    @property
    def targets(self) -> list[str]:
        return [self.first.grpc_address, self.second.grpc_address]


@pytest.fixture
async def pair(redis: RedisProcess) -> AsyncIterator[Pair]:
    url = f"--redis.url={redis.url}"
    async with ServerProcess(url) as first, ServerProcess(url) as second:
        yield Pair(first, second)


async def test_call_fails_over_from_an_unresponsive_registry(pair: Pair) -> None:
    async with RegistryClient(pair.targets, timeout=10) as client:
        await client.register_service(agent())
        pair.first.signal(signal.SIGSTOP)
        assert (await client.get_service("agent")).name == "agent"
        assert client.target == pair.second.grpc_address


async def test_leases_and_caches_fail_over_from_an_unresponsive_registry(pair: Pair) -> None:
    async with (
        RegistryClient(pair.targets, timeout=30) as client,
        RegistryClient(pair.second.grpc_address, timeout=30) as witness,
        client.registration(agent()) as me,
        client.cache(bookmark_interval=0.5) as cache,
    ):
        await witness.get_service("agent", min_revision=me.service.revision)
        pair.first.signal(signal.SIGSTOP)
        before = (await witness.get_service_health("agent"))[1]
        assert before is not None
        await until(lambda: client.target == pair.second.grpc_address)
        await until(lambda: cache.connected and me.state is RegistrationState.REGISTERED)
        async with asyncio.timeout(30):
            while (after := (await witness.get_service_health("agent"))[1]) is None or after.ToNanoseconds() <= (
                before.ToNanoseconds()
            ):
                await asyncio.sleep(0.05)
        await witness.register_service(agent("late"))
        await until(lambda: "late" in cache)


async def test_calls_in_flight_raise_when_their_client_is_closed(registry: RegistryProcess) -> None:
    client = RegistryClient(registry.target, timeout=30, session=False)
    waiting = asyncio.create_task(client.get_service("agent", min_revision=1 << 40))
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises((RegistryUnavailable, RuntimeError)):
        await waiting


async def test_watch_raises_when_its_client_is_closed(registry: RegistryProcess) -> None:
    client = RegistryClient(registry.target)
    watch = client.watch()
    while not watch.complete:
        await watch.next_events()
    waiting = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.05)
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting


async def test_cache_and_registration_survive_the_close_of_their_client(registry: RegistryProcess) -> None:
    client = RegistryClient(registry.target)
    await client.register_service(agent("cached"))
    async with client.cache() as cache:
        await client.close()
        await until(lambda: not cache.connected)
        assert cache.resolve().name == "cached"
    client = RegistryClient(registry.target)
    registration = client.registration(agent())
    await registration.__aenter__()
    await client.close()
    assert registration.state is RegistrationState.ENDED


async def test_block_unregisters_even_if_cancelled_twice(client: RegistryClient) -> None:
    entered = asyncio.Event()

    async def serve() -> None:
        async with client.registration(agent(), drain=0.3):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await entered.wait()
    task.cancel()
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ServiceNotFound):
        await client.get_service("agent")


async def test_rejected_watch_of_a_cache_is_retried(client: RegistryClient) -> None:
    async with client.cache(name_pattern="(", wait=False) as cache:
        await until(lambda: cache.last_error)
        assert isinstance(cache.last_error, InvalidRequest)
        assert not cache.ready
        assert cache._task is not None
        assert not cache._task.done()
