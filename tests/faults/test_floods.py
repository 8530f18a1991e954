"""Overload by real clients: excess is rejected with a reason, memory stays bounded, and service recovers."""

import asyncio
import io
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import HealthCheck, Service
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import ServerProcess, connected
from tests.support.traffic import info_of, reason_of
from tests.support.watching import following

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

TIMEOUT: Final = 60
MIB: Final = 1 << 20
SERVICES: Final = "/api/v1/registry/services"
METHOD: Final = "/ossa.registry.v1.RegistryService"
UNLIMITED_RATE: Final = ("--limits.requests-per-second=1000000", "--limits.request-burst=1000000")
"""One test client represents many clients, so its rate is not limited."""


class Growth:
    """Measures the memory growth of a server."""

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/statm")
        self._before = self._now()
        self.peak = 0.0
        """Largest growth so far in MiB."""

    async def watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._now() - self._before)
            await asyncio.sleep(0.05)

    def _now(self) -> float:
        return int(self._file.read_text().split()[1]) * 4096 / MIB


@asynccontextmanager
async def watched(server: ServerProcess) -> AsyncIterator[Growth]:
    growth = Growth(server.pid)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(growth.watch())
        yield growth
        task.cancel()
    print(f"grew by {growth.peak:.0f} MiB")


@asynccontextmanager
async def serving(redis: RedisProcess, *flags: str) -> "AsyncIterator[tuple[ServerProcess, RegistryServiceAsyncStub]]":
    async with (
        ServerProcess(
            f"--redis.url={redis.url}", "--log.requests=off", "--log.audit=off", *UNLIMITED_RATE, *flags, forked=False
        ) as server,
        connected(server.grpc_address) as (_, stub),
    ):
        yield server, stub


@asynccontextmanager
async def channels(server: ServerProcess, count: int) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Yield connections with a flow control window of 64 KiB: bandwidth probing would increase it up to 16 MiB."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    async with AsyncExitStack() as stack:
        made = [grpc.aio.insecure_channel(server.grpc_address, options=options) for _ in range(count)]
        yield [await stack.enter_async_context(each) for each in made]


def stream(channel: grpc.aio.Channel, method: str, wire: bytes) -> "grpc.aio.UnaryStreamCall[bytes, bytes]":
    """Start a call whose responses are only read by an explicit ``read()``."""
    made: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(f"{METHOD}/{method}")
    return made(wire)


async def metric(server: ServerProcess, name: str) -> float:
    async with aiohttp.ClientSession() as http, http.get(f"http://{server.http_address}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
    return next(s.value for family in families for s in family.samples if s.name == f"ossa_registry_{name}")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not await holds():
            await asyncio.sleep(0.05)


async def registered(stub: "RegistryServiceAsyncStub", name: str) -> None:
    """Register a service, with retries after UNAVAILABLE."""

    async def done() -> bool:
        try:
            await stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name)))
        except grpc.aio.AioRpcError as error:
            return not reason_of(error)  # raises for errors other than UNAVAILABLE
        return True

    await until(done)


def large(name: str, kib: int, version: str = "1.0.0") -> Service:
    service = small_service(name, version=version)
    service.metadata.labels.update({f"k{i}": "v" * 250 for i in range(4 * kib)})
    return service


async def test_registrations_while_redis_hangs(redis: RedisProcess) -> None:
    requests = (pb.RegisterServiceRequest(service=large(f"s{i}", 12)) for i in range(20_000))
    wires = [request.SerializeToString() for request in requests]
    errors: Counter[tuple[grpc.StatusCode, str]] = Counter()

    async def offer(channel: grpc.aio.Channel, wire: bytes) -> None:
        try:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{METHOD}/RegisterService")
            await call(wire)
        except grpc.aio.AioRpcError as error:
            reason = info_of(error).reason if error.code() == grpc.StatusCode.UNAVAILABLE else ""
            errors[error.code(), reason] += 1

    async with serving(redis) as (server, stub), channels(server, 4) as four:
        await registered(stub, "reader")
        redis.pause()
        async with watched(server) as growth, asyncio.TaskGroup() as group:
            for i, wire in enumerate(wires):
                group.create_task(offer(four[i % 4], wire))
            read = await stub.GetService(pb.GetServiceRequest(name="reader"))
            assert read.service.name == "reader"
        print(errors)
        assert errors.total() == len(wires)
        # gRPC resets calls that have not reached a handler, without a reason.
        del errors[grpc.StatusCode.CANCELLED, ""]
        unavailable = grpc.StatusCode.UNAVAILABLE
        assert {(unavailable, "STORE_UNAVAILABLE")} <= set(errors)
        assert set(errors) <= {(unavailable, "STORE_UNAVAILABLE"), (unavailable, "OVERLOADED")}
        # At most 5,000 writes of 12 KiB, which use about ten times as much; all writes would need 2 GiB.
        assert growth.peak < 1_000
        redis.resume()
        await registered(stub, "after")

        async def none_is_in_flight() -> bool:
            return await metric(server, "calls_in_flight") == 0

        await until(none_is_in_flight)  # a call is counted until its task ends, which may follow its answer
        assert await metric(server, "calls_in_flight_bytes") == 0


async def test_more_watches_than_the_limit_per_caller(redis: RedisProcess) -> None:
    wire = pb.WatchEventsRequest().SerializeToString()
    refused: Counter[str] = Counter()

    async def opened(channel: grpc.aio.Channel) -> Any:
        call = stream(channel, "WatchEvents", wire)
        try:
            await call.read()
        except grpc.aio.AioRpcError as error:
            refused[info_of(error).reason] += 1
            return None
        return call

    limit = "--limits.watches-per-caller=5000"  # the default does not apply to an address without a policy
    async with serving(redis, limit) as (server, stub), channels(server, 4) as four, watched(server) as growth:
        calls = []
        for _ in range(11):
            calls += await asyncio.gather(*(opened(four[i % 4]) for i in range(500)))
        assert refused == {"LIMIT_EXCEEDED": 500}
        assert await metric(server, "watchers") == 5_000
        await registered(stub, "agent")
        watching = next(call for call in calls if call is not None)
        message = pb.WatchEventsResponse.FromString(await watching.read())
        assert [event.service.name for event in message.events] == ["agent"]
        assert growth.peak < 600


async def test_watchers_that_never_read(redis: RedisProcess) -> None:
    readers, rounds = 200, 25
    wire = pb.WatchEventsRequest(include_snapshot=True).SerializeToString()
    async with (
        serving(redis, "--grpc.write-timeout-ms=2000") as (server, stub),
        channels(server, 4) as four,
        following(stub) as honest,
        watched(server) as growth,
    ):
        silent = [stream(four[i % 4], "WatchEvents", wire) for i in range(readers)]

        async def all_watch() -> bool:
            return await metric(server, "watchers") == readers + 1

        await until(all_watch)
        for i in range(rounds):
            batch = [large(f"s{j}", 8, f"1.0.{i}") for j in range(200)]
            answer = await stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=batch))
            assert all(result.HasField("service") for result in answer.results)

        async def all_have_ended() -> bool:
            return await metric(server, "watchers") == 1

        await until(all_have_ended)
        # Streams that could still be written to ended at once; the others keep their place until their client leaves.
        assert await metric(server, "slow_readers_disconnected_total") > 0
        for call in silent:
            call.cancel()

        async def all_have_left() -> bool:
            return await metric(server, "grpc_streams") <= 1

        await until(all_have_left)
        await honest.reached(200 * rounds)
        assert len(honest.events) == 200 * rounds
        assert honest.streams == 1
        assert growth.peak < 700


async def test_unread_responses(redis: RedisProcess) -> None:
    wire = pb.DiscoverServicesRequest(page_size=500).SerializeToString()
    async with serving(redis, f"--limits.call-bytes={32 * MIB}") as (server, stub), channels(server, 1) as (channel,):
        fleet = [large(f"s{i}", 16) for i in range(200)]
        for part in (fleet[:100], fleet[100:]):
            await stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=part))
        async with watched(server) as growth:
            # As a stream, because a unary call reads its response.
            silent = [stream(channel, "DiscoverServices", wire) for _ in range(200)]

            async def too_much() -> bool:
                return await metric(server, "calls_rejected_total") > 0

            await until(too_much)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.DiscoverServices(pb.DiscoverServicesRequest(page_size=500))
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            info = info_of(refused.value)
            assert (info.reason, info.metadata["limit"]) == ("OVERLOADED", "call-bytes")
            assert (await stub.GetService(pb.GetServiceRequest(name="s1"))).service.name == "s1"

            for call in silent:
                call.cancel()

            async def all_have_left() -> bool:
                return await metric(server, "calls_in_flight") == 0

            await until(all_have_left)
            assert await metric(server, "calls_in_flight_bytes") == 0
            assert len((await stub.DiscoverServices(pb.DiscoverServicesRequest(page_size=500))).services) > 100
        assert growth.peak < 200


async def test_large_bodies(redis: RedisProcess) -> None:
    body = b"x" * (16 * MIB)
    json = {"Content-Type": "application/json"}

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 1 << 16):
            yield body[at : at + (1 << 16)]

    async def status(http: aiohttp.ClientSession, data: Any) -> int:
        try:
            async with http.post(SERVICES, data=data, headers=json) as answer:
                return answer.status
        except aiohttp.ClientConnectionError:  # disconnected while sending
            return 0

    async with (
        serving(redis) as (server, stub),
        aiohttp.ClientSession(f"http://{server.http_address}", connector=aiohttp.TCPConnector(limit=0)) as http,
        watched(server) as growth,
    ):
        sent = await asyncio.gather(*(status(http, io.BytesIO(body) if i % 2 else chunks()) for i in range(64)))
        assert set(sent) <= {0, 413, 503}
        assert 413 in sent
        await registered(stub, "after")
    assert growth.peak < 300


async def test_incomplete_bodies(redis: RedisProcess) -> None:
    request = (
        f"POST {SERVICES} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {MIB}\r\n\r\n"
    ).encode() + b"{" * (MIB // 2)

    async with serving(redis) as (server, stub), watched(server) as growth, AsyncExitStack() as stack:
        host, _, port = server.http_address.rpartition(":")
        answers: list[asyncio.Task[bytes]] = []
        for _ in range(400):
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            writer.write(request)
            answers.append(asyncio.create_task(reader.readuntil(b"}}")))

        async def refused() -> bool:
            # Of 128 MiB; what has arrived counts.
            return sum(answer.done() for answer in answers) >= 400 - 264

        await until(refused)
        for answer in answers:
            if answer.done():
                text = answer.result()
                assert text.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nRetry-After: 1\r\n" in text
                assert b'"code":"OVERLOADED"' in text
            else:
                answer.cancel()
        assert await metric(server, "calls_in_flight") <= 264
        await registered(stub, "after")
        assert growth.peak < 300


async def test_probes_on_demand(redis: RedisProcess) -> None:
    agent = socket.create_server(("127.0.0.1", 0), backlog=4096)  # never responds
    port = agent.getsockname()[1]
    check = HealthCheck()
    check.http.path = "/health"
    check.timeout.FromSeconds(2)
    check.interval.FromSeconds(3600)
    fleet = [small_service(f"s{i}", endpoint=f"http://127.0.0.1:{port}", health_check=check) for i in range(2_000)]
    errors: Counter[str] = Counter()

    async def probe(stub: "RegistryServiceAsyncStub", name: str) -> None:
        try:
            await stub.CheckServiceHealth(pb.CheckServiceHealthRequest(name=name), timeout=3)
            errors["answered"] += 1
        except grpc.aio.AioRpcError as error:
            info = info_of(error) if error.code() == grpc.StatusCode.UNAVAILABLE else None
            errors[error.code().name if info is None else f"{info.reason} {info.metadata['limit']}"] += 1

    async with serving(redis, "--health-check.enabled=true") as (server, stub), watched(server) as growth:
        for some in _slices(fleet, 500):
            await stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=some))
        await asyncio.gather(*(probe(stub, service.name) for service in fleet))
        print(errors)
        # About 950 at once; on a busy machine the deadline of some passes before they reach the server.
        assert errors["OVERLOADED probes"] > 200
        assert errors.total() == 2_000
        await registered(stub, "after")
    agent.close()
    assert growth.peak < 200


def _slices(fleet: list[Service], size: int) -> Iterator[list[Service]]:
    return (fleet[at : at + size] for at in range(0, len(fleet), size))
