"""Redis outages: reads continue, acknowledged writes are kept, and watchers miss no change."""

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import HealthStatus, Service
from tests.support.leases import pass_time
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, running
from tests.support.watching import following

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

TIMEOUT = 30


async def register(server: Server, service: Service) -> Service:
    return (await server.stub.RegisterService(pb.RegisterServiceRequest(service=service))).service


async def until(server: Server, *, connected: bool) -> None:
    async with asyncio.timeout(TIMEOUT):
        while (await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).store_connected != connected:
            await asyncio.sleep(0.02)


def details_of(error: grpc.aio.AioRpcError) -> tuple[ErrorInfo, RetryInfo | None]:
    trailers = dict(error.trailing_metadata() or ())
    status = Status.FromString(bytes(trailers["grpc-status-details-bin"]))
    info, retry = ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    return info, retry if len(status.details) > 1 and status.details[1].Unpack(retry) else None


class Load:
    """Registers services as fast as possible, and records the acknowledged ones."""

    def __init__(self, stub: "RegistryServiceAsyncStub") -> None:
        self._stub = stub
        self.acknowledged: dict[str, Service] = {}
        self.refused: list[grpc.aio.AioRpcError] = []

    async def run(self, number: int, stop: asyncio.Event) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            service = small_service(f"load-{number}-{count}")
            try:
                answer = await self._stub.RegisterService(pb.RegisterServiceRequest(service=service))
                self.acknowledged[service.name] = answer.service
            except grpc.aio.AioRpcError as error:
                self.refused.append(error)
                await asyncio.sleep(0.05)


async def test_killed_redis_loses_nothing_under_load(redis: RedisProcess) -> None:
    async with running(redis.url) as server, following(server.stub) as subscriber:
        load, stop = Load(server.stub), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(8):
                group.create_task(load.run(number, stop))
            for _ in range(3):
                acknowledged = len(load.acknowledged)
                async with asyncio.timeout(TIMEOUT):
                    while len(load.acknowledged) < acknowledged + 200:
                        await asyncio.sleep(0.01)
                redis.kill()
                await until(server, connected=False)

                found = await server.stub.DiscoverServices(pb.DiscoverServicesRequest())
                assert found.stale
                assert found.total_size >= len(load.acknowledged)
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await register(server, small_service("refused"))
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE

                await redis.restart()
                await until(server, connected=True)
            stop.set()

        assert {error.code() for error in load.refused} == {grpc.StatusCode.UNAVAILABLE}
        for error in load.refused:
            info, retry = details_of(error)
            assert (info.domain, info.reason) == ("registry.ossa", "STORE_UNAVAILABLE")
            assert retry is not None
            assert retry.retry_delay.ToMilliseconds() > 0
        for name, service in load.acknowledged.items():
            assert (await server.stub.GetService(pb.GetServiceRequest(name=name))).service == service
        health = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        await subscriber.reached(health.revision)
        assert [event.revision for event in subscriber.events] == list(range(1, health.revision + 1))
        assert subscriber.streams == 1
        found = await server.stub.DiscoverServices(pb.DiscoverServicesRequest())
        assert not found.stale
        assert found.total_size == len(subscriber.state)


async def test_first_write_after_a_restart_succeeds(redis: RedisProcess) -> None:
    async with running(redis.url) as server:
        await register(server, small_service("before"))
        redis.kill()
        await until(server, connected=False)
        await redis.restart()
        await until(server, connected=True)

        assert (await register(server, small_service("after"))).revision == 2


async def test_outage_longer_than_a_ttl_expires_no_lease(redis: RedisProcess) -> None:
    async with running(redis.url) as server, following(server.stub) as subscriber:
        service = small_service("short-lived")
        service.ttl.seconds = 5
        await register(server, service)
        async with Redis.from_url(redis.url) as client:
            await pass_time(client, 6)  # longer than the lease
        redis.kill()
        await until(server, connected=False)
        await redis.restart()
        await until(server, connected=True)

        async with asyncio.timeout(TIMEOUT):  # the document expired in Redis during the outage and is written again
            while not await _document(redis, "short-lived"):
                await asyncio.sleep(0.05)
        answer = await server.stub.Heartbeat(pb.HeartbeatRequest(names=["short-lived"]))
        assert answer.renewed_count == 1
        assert [event.type for event in subscriber.events] == [EventType.EVENT_TYPE_SERVICE_REGISTERED]


async def test_reads_continue_and_writes_fail_while_redis_hangs(redis: RedisProcess) -> None:
    async with running(redis.url, redis={"timeout_ms": 1_000}) as server, following(server.stub) as subscriber:
        before = await register(server, small_service("before"))
        redis.pause()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await register(server, small_service("refused"))
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        await until(server, connected=False)
        health = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
        assert health.status == HealthStatus.HEALTH_STATUS_DEGRADED
        assert health.replication_lag.ToMilliseconds() > 0
        assert (await server.stub.GetService(pb.GetServiceRequest(name="before"))).service == before
        with pytest.raises(grpc.aio.AioRpcError) as strong:
            await server.stub.DiscoverServices(
                pb.DiscoverServicesRequest(consistency=pb.Consistency.CONSISTENCY_STRONG)
            )
        assert strong.value.code() == grpc.StatusCode.UNAVAILABLE
        redis.resume()
        await until(server, connected=True)

        after = await register(server, small_service("after"))
        await subscriber.reached(after.revision)
        # The failed write may have been committed after the resume; watchers then receive it.
        assert [event.revision for event in subscriber.events] == list(range(1, after.revision + 1))
        assert {"before", "after"} <= set(subscriber.state)


async def test_emptied_redis_without_repair_is_reported_as_a_resync(
    redis: RedisProcess,
) -> None:
    async with running(redis.url, redis={"repair": False}) as server, following(server.stub) as subscriber:
        for i in range(5):
            await register(server, small_service(f"agent-{i}"))
        await subscriber.reached(5)
        old_cursor = subscriber.cursor
        await _command(redis, "FLUSHALL")

        async with asyncio.timeout(TIMEOUT):
            while subscriber.state:
                await asyncio.sleep(0.01)
        removals = subscriber.events[5:]
        assert {event.service.name for event in removals} == {f"agent-{i}" for i in range(5)}
        assert {event.type for event in removals} == {EventType.EVENT_TYPE_SERVICE_UNREGISTERED}
        assert {event.reason for event in removals} == {EventReason.EVENT_REASON_RESYNC}
        stream = server.stub.WatchEvents(pb.WatchEventsRequest(cursor=old_cursor))
        with pytest.raises(grpc.aio.AioRpcError) as expired:
            await stream.read()
        assert expired.value.code() == grpc.StatusCode.OUT_OF_RANGE
        assert details_of(expired.value)[0].reason == "CURSOR_EXPIRED"
        assert (await register(server, small_service("agent-0"))).revision == 1


async def test_write_that_detects_an_emptied_redis_succeeds(redis: RedisProcess) -> None:
    async with running(redis.url) as server:
        await register(server, small_service("before"))
        await _command(redis, "FLUSHALL")

        assert (await register(server, small_service("after"))).revision == 2
        found = await server.stub.DiscoverServices(pb.DiscoverServicesRequest())
        assert [service.name for service in found.services] == ["after", "before"]


async def test_redis_out_of_memory_rejects_writes_atomically(redis: RedisProcess) -> None:
    async with running(redis.url) as server:
        before = await register(server, small_service("before"))
        await _command(redis, "CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await register(server, small_service("refused"))
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        await _command(redis, "CONFIG", "SET", "maxmemory", "0")

        assert (await register(server, small_service("after"))).revision == before.revision + 1
        found = await server.stub.DiscoverServices(pb.DiscoverServicesRequest())
        assert [service.name for service in found.services] == ["after", "before"]


async def _document(redis: RedisProcess, name: str) -> bytes:
    answer: bytes = await _command(redis, "GET", f"ossa:services:{name}")
    return answer


async def _command(redis: RedisProcess, *command: str) -> bytes:
    """Run a command, as an operator with redis-cli would."""
    async with Redis.from_url(redis.url) as client:
        answer: bytes = await client.execute_command(*command)  # type: ignore[no-untyped-call]
        return answer
