"""Several server processes on one Redis form one registry."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import Service
from tests.support.leases import pass_time
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import ServerProcess, connected
from tests.support.watching import following

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub


class Pair(NamedTuple):
    one: "RegistryServiceAsyncStub"
    other: "RegistryServiceAsyncStub"
    processes: tuple[ServerProcess, ServerProcess]


@pytest.fixture
async def pair(redis: RedisProcess) -> AsyncIterator[Pair]:
    async with (
        _process(redis) as first,
        _process(redis) as second,
        connected(first.grpc_address) as (_, one),
        connected(second.grpc_address) as (_, other),
    ):
        yield Pair(one, other, (first, second))


@asynccontextmanager
async def _process(redis: RedisProcess) -> AsyncIterator[ServerProcess]:
    async with ServerProcess(f"--redis.url={redis.url}", "--shutdown.grace-seconds=2") as process:
        yield process


def _register(service: Service) -> pb.RegisterServiceRequest:
    return pb.RegisterServiceRequest(service=service)


async def test_watcher_receives_changes_of_the_other_process(pair: Pair) -> None:
    async with following(pair.other) as subscriber:
        registered = (await pair.one.RegisterService(_register(small_service("agent")))).service
        await subscriber.reached(registered.revision)
        assert subscriber.state == {"agent": registered}

        removed = await pair.one.UnregisterService(pb.UnregisterServiceRequest(name="agent"))
        async with asyncio.timeout(30):
            while subscriber.state:
                await asyncio.sleep(0.01)
        assert subscriber.events[-1].type == EventType.EVENT_TYPE_SERVICE_UNREGISTERED
        assert subscriber.events[-1].service == removed.service


async def test_write_is_visible_locally_and_remotely_with_min_revision(pair: Pair) -> None:
    for i in range(100):
        name = f"agent-{i}"
        written = (await pair.one.RegisterService(_register(small_service(name)))).service
        assert (await pair.one.GetService(pb.GetServiceRequest(name=name))).service == written
        there = pb.GetServiceRequest(name=name, min_revision=written.revision)
        assert (await pair.other.GetService(there)).service == written


async def test_strong_read_sees_commits_of_the_other_process(pair: Pair) -> None:
    for i in range(50):
        await pair.one.RegisterService(_register(small_service(f"agent-{i}")))
        found = await pair.other.DiscoverServices(
            pb.DiscoverServicesRequest(consistency=pb.Consistency.CONSISTENCY_STRONG)
        )
        assert found.total_size == i + 1


async def test_preconditions_are_checked_against_the_current_state(pair: Pair) -> None:
    for i in range(30):
        name = f"agent-{i}"
        written = (await pair.one.RegisterService(_register(small_service(name)))).service
        changed = await pair.other.UpdateService(
            pb.UpdateServiceRequest(service=small_service(name, version="2.0.0"), expected_revision=written.revision)
        )
        assert changed.service.version == "2.0.0"
        await pair.one.UnregisterService(
            pb.UnregisterServiceRequest(name=name, expected_revision=changed.service.revision)
        )
        again = pb.RegisterServiceRequest(service=small_service(name), create_only=True)
        await pair.other.RegisterService(again)


async def test_concurrent_writers_of_one_name_get_distinct_revisions(pair: Pair) -> None:
    async with following(pair.one) as subscriber:
        revisions: list[int] = []

        async def write(stub: "RegistryServiceAsyncStub", writer: int) -> None:
            for i in range(30):
                service = small_service("contested", version=f"{writer}.{i}.0")
                revisions.append((await stub.RegisterService(_register(service))).service.revision)

        async with asyncio.TaskGroup() as group:
            for writer in range(6):
                group.create_task(write((pair.one, pair.other)[writer % 2], writer))
        assert len(set(revisions)) == len(revisions)
        await subscriber.reached(max(revisions))
        assert [event.revision for event in subscriber.events] == sorted(revisions)
        newest = pb.GetServiceRequest(name="contested", min_revision=max(revisions))
        assert subscriber.state["contested"] == (await pair.other.GetService(newest)).service


async def test_killed_process_loses_nothing(pair: Pair) -> None:
    async with following(pair.other) as subscriber:
        for i in range(20):
            await pair.one.RegisterService(_register(small_service(f"agent-{i}")))
        await pair.processes[0].kill()

        await pair.other.RegisterService(_register(small_service("after")))
        found = await pair.other.DiscoverServices(pb.DiscoverServicesRequest())
        assert found.total_size == 21
        await subscriber.reached(21)
        assert len(subscriber.state) == 21


async def test_lease_survives_a_pause_of_the_only_process(redis: RedisProcess) -> None:
    async with _process(redis) as process, connected(process.grpc_address) as (_, stub):
        service = small_service("paused")
        service.ttl.seconds = 5
        await stub.RegisterService(_register(service))
        process.signal(signal.SIGSTOP)
        async with Redis.from_url(redis.url) as client:
            await pass_time(client, 15)  # three lease lengths
        process.signal(signal.SIGCONT)

        answer = await stub.Heartbeat(pb.HeartbeatRequest(names=["paused"]), wait_for_ready=True)
        assert answer.renewed_count == 1
        await process.logged("lease clock adjusted")
        assert (await stub.GetService(pb.GetServiceRequest(name="paused"))).service.name == "paused"
