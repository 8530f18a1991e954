"""Processes of the SDK that share a name: they overlap, leave, crash and start again."""

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from registry_client import (
    Event,
    EventType,
    HealthStatus,
    RegistryClient,
    Service,
    ServiceNotFound,
    make_service,
)
from registry_client.testing import RegistryProcess
from tests.support.redis_process import PORTS
from tests.support.waiting import until

AGENT = Path(__file__).with_name("instance_agent.py")
TIMEOUT_SECONDS = 60.0
TTL_SECONDS = 5
MORE_THAN_A_LEASE = TTL_SECONDS + 2
NAME = "agent"
HEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY
UNHEALTHY = HealthStatus.HEALTH_STATUS_UNHEALTHY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Agent:
    """An agent process, whose lines are read as they arrive."""

    def __init__(self, target: str, version: str = "1.0.0", **options: Any) -> None:
        service = {
            "name": NAME,
            "endpoint": "http://stable.test",
            "version": version,
            "health_check": "heartbeat",
            "capabilities": ["work"],
            "ttl": TTL_SECONDS,
            **options.pop("service", {}),
        }
        self._arguments = (target, json.dumps({"service": service, **options}))
        self.lines: list[str] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(AGENT), *self._arguments, stdout=asyncio.subprocess.PIPE
        )
        self._reader = asyncio.create_task(self._read())
        await self.printed(" ")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    @property
    def name(self) -> str:
        return self.lines[0].split()[0]

    async def printed(self, part: str) -> None:
        """Wait until a line contains this text."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not any(part in line for line in self.lines):
                assert not self._reader.done(), f"ended without {part!r}: {self.lines}"
                self._news.clear()
                await self._news.wait()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader

    async def leave(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await self.process.wait() == 0
        await self._reader

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())
            self._news.set()
        self._news.set()


@pytest.fixture
async def events(client: RegistryClient) -> AsyncIterator[list[Event]]:
    """All events since the start of the test."""
    found: list[Event] = []
    watch = client.watch()
    while not watch.complete:
        await watch.next_events()

    async def collect() -> None:
        async for event in watch:
            found.append(event)  # noqa: PERF401 - read while it grows

    task = asyncio.create_task(collect())
    yield found
    task.cancel()
    await asyncio.wait([task])
    await watch.close()


@asynccontextmanager
async def probing_registry() -> AsyncIterator[tuple[RegistryProcess, RegistryClient]]:
    flags = ("--health-check.enabled=true", "--health-check.interval-ms=1000")
    async with RegistryProcess(*flags) as registry, RegistryClient(registry.target, timeout=30) as client:
        yield registry, client


async def wait_for_status(client: RegistryClient, status: HealthStatus.ValueType, name: str = NAME) -> Service:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (service := await client.get_service(name)).health.status != status:
            await asyncio.sleep(0.05)
    return service


async def assert_available(client: RegistryClient, version: str, seconds: float = 0.0) -> None:
    """Check, for some time, that the service is available in this version."""
    async with client.cache() as cache:
        end = time.monotonic() + seconds
        while True:
            assert cache.resolve("work").version == version
            service = await client.get_service(NAME)
            assert (service.health.status, service.draining) == (HEALTHY, False)
            if time.monotonic() >= end:
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("wait", [True, False])
async def test_successor_of_an_agent_killed_in_its_drain_is_available(
    wait: object, registry: RegistryProcess, client: RegistryClient, events: list[Event]
) -> None:
    async with Agent(registry.target, drain=60.0) as old:
        old.process.send_signal(signal.SIGTERM)
        await until(lambda: any(event.service.draining for event in events))
        assert (await client.get_service(NAME)).health.status == HEALTHY
        async with Agent(registry.target, wait=wait) as new:
            await new.printed("registered")
            registered = await client.get_service(NAME)
            assert (registered.health.status, registered.draining) == (HEALTHY, False)
            await old.kill()
            await assert_available(client, "1.0.0", MORE_THAN_A_LEASE)
            later = [event for event in events if event.revision > registered.revision]
            assert later == []


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
async def test_leaving_agent_leaves_its_successor_registered(
    version: str, registry: RegistryProcess, client: RegistryClient, events: list[Event]
) -> None:
    async with Agent(registry.target) as old, Agent(registry.target, version) as new:
        await old.leave()
        assert old.lines[-1] == "left True"
        await assert_available(client, version)
        assert EventType.EVENT_TYPE_SERVICE_UNREGISTERED not in {event.type for event in events}
        assert not any(event.service.draining for event in events)
        assert new.lines == [f"{NAME} registered"]
        await new.leave()
        with pytest.raises(ServiceNotFound):
            await client.get_service(NAME)


async def test_two_living_processes_of_a_name_do_not_fight(
    registry: RegistryProcess, client: RegistryClient, events: list[Event]
) -> None:
    async with Agent(registry.target) as first, Agent(registry.target, "2.0.0") as second:
        await first.printed("superseded")
        seen = len(events)
        await assert_available(client, "2.0.0", MORE_THAN_A_LEASE)
        assert events[seen:] == []
        assert (first.lines, second.lines) == ([f"{NAME} registered", "superseded"], [f"{NAME} registered"])
        await first.leave()
        assert (await client.get_service(NAME)).version == "2.0.0"


async def test_replicas_of_crashed_processes_are_gone_after_a_lease() -> None:
    async with probing_registry() as (registry, client):
        port = random.choice(PORTS)
        service = {"endpoint": f"http://127.0.0.1:{port}", "health_check": None}
        for _ in range(3):
            async with Agent(registry.target, service=service, port=port, replicas=True) as crashed:
                await wait_for_status(client, HEALTHY, crashed.name)
                await crashed.kill()
        async with Agent(registry.target, service=service, port=port, replicas=True) as living:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while len(found := await client.find_services(group=NAME)) > 1:
                    await asyncio.sleep(0.1)
            assert [each.name for each in found] == [living.name]
            await wait_for_status(client, HEALTHY, living.name)


async def test_unhealthy_service_that_registers_as_heartbeat_is_healthy() -> None:
    async with probing_registry() as (registry, client):
        unreachable = {"endpoint": "http://127.0.0.1:1", "health_check": None}
        async with Agent(registry.target, service=unreachable):
            await wait_for_status(client, UNHEALTHY)
        async with Agent(registry.target, service=unreachable | {"health_check": "heartbeat"}):
            assert (await client.get_service(NAME)).health.status == HEALTHY
            await asyncio.sleep(2)
            assert (await client.get_service(NAME)).health.status == HEALTHY


async def test_unhealthy_service_that_is_updated_to_heartbeat_is_healthy() -> None:
    probed = make_service(NAME, "http://127.0.0.1:1", version="1.0.0")
    async with probing_registry() as (_, client), client.registration(probed, sigterm=False) as me:
        await wait_for_status(client, UNHEALTHY)
        changed = make_service(NAME, "http://127.0.0.1:1", version="1.0.0", health_check="heartbeat")
        assert (await me.update(changed)).health.status == HEALTHY


async def test_reported_health_ends_with_its_process(registry: RegistryProcess, client: RegistryClient) -> None:
    async with Agent(registry.target, reports="unhealthy") as old:
        await old.printed("reported")
        assert (await client.get_service(NAME)).health.status == UNHEALTHY
        await old.kill()
    async with Agent(registry.target):
        await assert_available(client, "1.0.0")
