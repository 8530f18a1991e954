"""Loads: heartbeats report them, and every process returns them without a revision."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Load
from tests.grpc.calls import failure, get, health_of, redis_client, register
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running


def lease(in_flight: int, instance_id: str = "one", capacity: int = 8) -> pb.Lease:
    return pb.Lease(name="a", instance_id=instance_id, load=Load(in_flight=in_flight, capacity=capacity))


async def send(server: Server, *leases: pb.Lease) -> pb.HeartbeatResponse:
    return await server.stub.Heartbeat(pb.HeartbeatRequest(leases=leases))


async def load_of(server: Server) -> tuple[int, int] | None:
    answer = await health_of(server, "a")
    return (answer.load.in_flight, answer.load.capacity) if answer.HasField("load") else None


async def until_load(server: Server, expected: tuple[int, int] | None) -> None:
    async with asyncio.timeout(30):
        while await load_of(server) != expected:
            await asyncio.sleep(0.02)


@pytest.fixture
async def other(redis: RedisProcess) -> AsyncIterator[Server]:
    """Another process of the same registry."""
    async with running(redis.url) as started:
        yield started


async def test_all_processes_know_a_load_without_a_revision(server: Server, other: Server) -> None:
    registered = await register(server, small_service("a", instance_id="one"))
    assert await load_of(server) is None
    await send(server, lease(3))
    assert await load_of(server) == (3, 8)
    await until_load(other, (3, 8))
    reported = [(await health_of(each, "a")).load.reported_at.ToNanoseconds() / 1e9 for each in (server, other)]
    assert abs(reported[0] - reported[1]) < 5
    stream = other.stub.KeepAlive()
    await stream.write(pb.KeepAliveRequest(leases=[lease(0, capacity=0)]))
    await stream.read()
    assert await load_of(other) == (0, 0)
    await until_load(server, (0, 0))
    stream.cancel()
    await send(server, pb.Lease(name="a", instance_id="one"))
    assert await load_of(server) == (0, 0), "a heartbeat without a load keeps it"
    assert (await get(other, "a")).revision == registered.revision
    assert server.parts.replica.revision == registered.revision


async def test_takeover_forgets_the_load_in_all_processes(server: Server, other: Server) -> None:
    await register(server, small_service("a", instance_id="one"))
    await send(server, lease(3))
    await until_load(other, (3, 8))
    second = await register(other, small_service("a", instance_id="two"))
    await server.stub.GetService(pb.GetServiceRequest(name="a", min_revision=second.revision))
    assert [await load_of(each) for each in (server, other)] == [None, None]
    assert (await send(server, lease(5))).superseded_names == ["a"]
    assert [await load_of(each) for each in (server, other)] == [None, None]
    await send(server, lease(1, "two"))
    await until_load(other, (1, 8))


async def test_loads_return_after_redis_lost_all_data(server: Server, other: Server, redis: RedisProcess) -> None:
    await register(server, small_service("a", instance_id="one"))
    await send(server, lease(3))
    await until_load(other, (3, 8))
    async with redis_client(redis) as client:
        await client.flushall()
    await send(server, lease(4))
    assert await load_of(server) == (4, 8)
    await until_load(other, (4, 8))


async def test_negative_loads_are_refused(server: Server) -> None:
    await register(server, small_service("a", instance_id="one"))
    refused = await failure(send(server, lease(1), lease(-1, capacity=-2)))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.fields == ["leases[1].load.in_flight", "leases[1].load.capacity"]
    assert await load_of(server) is None
