"""Requests that never arrive, or arrive only in part, take nothing from other callers."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from tests.fuzz.requests import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    SETTINGS,
    WINDOW,
    call_fields,
    frame,
    header_block,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import Server, connected, running
from tests.support.waiting import until

SERVICE = "/ossa.registry.v1.RegistryService"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECT = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SMALL_LIMITS = {"calls": 20, "watches": 20, "unauthenticated_calls": 20}
TIMEOUT_SECONDS = 20.0
_NO_MESSAGES = (4).to_bytes(2, "big") + bytes(4)
"""SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, 6.5.2) of 0 bytes."""


async def never() -> AsyncIterator[bytes]:
    """Yield no message, and do not end."""
    await asyncio.Event().wait()
    yield b""


async def nothing() -> AsyncIterator[bytes]:
    """End without a message."""
    empty: tuple[bytes, ...] = ()
    for message in empty:
        yield message


@asynccontextmanager
async def silent_calls(address: str, path: str, number: int, metadata: Any = ()) -> AsyncIterator[list[Any]]:
    """Open calls that send headers and nothing else."""
    async with connected(address) as (channel, _):
        untyped: Any = channel
        calls = [untyped.stream_unary(path)(never(), metadata=metadata) for _ in range(number)]
        yield calls
        for call in calls:
            call.cancel()


async def expect_service(server: Server, metadata: Any) -> None:
    """Require that a new client is served: a call, and a watch."""
    async with connected(server.grpc_address) as (_, stub):
        await stub.GetStats(pb.GetStatsRequest(), metadata=metadata, timeout=TIMEOUT_SECONDS)
        watch = stub.WatchEvents(pb.WatchEventsRequest(), metadata=metadata, timeout=TIMEOUT_SECONDS)
        await watch.read()
        watch.cancel()


async def calls_in_flight(server: Server, policy: Policy) -> float:
    """Return the number of calls in flight, including those of callers without a credential."""
    async with aiohttp.ClientSession() as session:
        answer = await session.get(f"{server.http}/metrics", headers=dict(policy.metadata("viewer")))
        text = await answer.text()
    (value,) = re.findall(r"^ossa_registry_calls_in_flight(?:{.*})? (\S+)$", text, re.MULTILINE)
    return float(value)


class RawConnection:
    """An HTTP/2 connection that sends parts of requests, and may allow the server to send no messages."""

    def __init__(self, address: str, *, reads: bool = True) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._settings = b"" if reads else _NO_MESSAGES

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        self._writer.write(PREFACE + frame(SETTINGS, 0, 0, self._settings))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    def open(self, stream: int, path: str, metadata: Sequence[tuple[str, str]] = ()) -> None:
        fields = call_fields(path.encode(), *((name.encode(), value.encode()) for name, value in metadata))
        self._writer.write(frame(HEADERS, END_HEADERS, stream, header_block(fields)))

    def allow(self, stream: int, size: int) -> None:
        self._writer.write(frame(WINDOW, 0, stream, size.to_bytes(4, "big")))

    def send(self, stream: int, part: bytes, *, end: bool = False) -> None:
        self._writer.write(frame(DATA, END_STREAM if end else 0, stream, part))

    async def responses(self, number: int) -> dict[int, bytes]:
        """Return the header blocks that end the given number of streams."""
        ended: dict[int, bytes] = {}
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(ended) < number:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                if head[3] == HEADERS and head[4] & END_STREAM:
                    ended[int.from_bytes(head[5:], "big")] = payload
        return ended


def message(wire: bytes) -> bytes:
    """Return a gRPC message with its length."""
    return b"\0" + len(wire).to_bytes(4, "big") + wire


@pytest.mark.parametrize("name", ["GetStats", "RegisterService", "BatchRegisterServices", "WatchEvents", "KeepAlive"])
async def test_call_without_a_credential_is_refused_before_its_request(
    name: str, redis: RedisProcess, policy: Policy
) -> None:
    async with (
        running(redis.url, security=policy.section, limits=SMALL_LIMITS) as server,
        silent_calls(server.grpc_address, f"{SERVICE}/{name}", 60) as calls,
    ):
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert Counter([await call.code() for call in calls]) == {grpc.StatusCode.UNAUTHENTICATED: 60}
        await expect_service(server, policy.metadata("viewer"))


@pytest.mark.parametrize("path", [CHECK, WATCH, REFLECT])
async def test_public_calls_without_a_request_leave_room_for_callers(
    path: str, redis: RedisProcess, policy: Policy
) -> None:
    async with (
        running(redis.url, security=policy.section, limits=SMALL_LIMITS, grpc={"max_message_bytes": 1 << 20}) as server,
        silent_calls(server.grpc_address, path, 2_000) as calls,
    ):
        await expect_service(server, policy.metadata("viewer"))
        # Of those that wait, a quarter of limits.call_bytes remains: 32 times 1 MiB.
        await until(lambda: sum(not call.done() for call in calls) <= 32)
        await expect_service(server, policy.metadata("viewer"))
        health: Any = health_pb2_grpc.HealthStub(server.channel)
        check = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS)
        assert (await check).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("name", ["GetService", "WatchEvents"])
async def test_call_that_ends_without_a_request_is_answered(name: str, server: Server) -> None:
    channel: Any = server.channel
    call = channel.stream_unary(f"{SERVICE}/{name}")(nothing(), timeout=TIMEOUT_SECONDS)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await call.details() == "(request): is missing: the call ended without a message"
    assert server.parts.hub.watchers == 0


async def test_caller_with_most_incomplete_requests_loses_them(redis: RedisProcess, policy: Policy) -> None:
    limits = {"call_bytes": 4 << 20}  # two of the largest requests
    async with (
        running(redis.url, security=policy.section, limits=limits, grpc={"max_message_bytes": 2 << 20}) as server,
        RawConnection(server.grpc_address) as hostile,
        RawConnection(server.grpc_address) as honest,
    ):
        slow = message(pb.RegisterServiceRequest(service=small_service("fleet-slow")).SerializeToString())
        honest.open(1, f"{SERVICE}/RegisterService", policy.metadata("agent"))
        honest.send(1, slow[:20])
        for number in range(100):
            hostile.open(1 + 2 * number, f"{SERVICE}/RegisterService", policy.metadata("other"))
            hostile.send(1 + 2 * number, message(bytes(1 << 20))[:100])
        refused = await hostile.responses(99)
        for trailers in refused.values():
            assert b"limit of 4194304 bytes of requests and answers reached (limits.call_bytes)" in trailers
            assert b"a request that arrives slowly counts with grpc.max_message_bytes" in trailers
        assert 1 not in refused, "the newest are refused first"
        honest.send(1, slow[20:], end=True)
        assert b"grpc-status\x010" in (await honest.responses(1))[1]
        names = [
            each.name
            for each in (
                await server.stub.DiscoverServices(pb.DiscoverServicesRequest(), metadata=policy.metadata("viewer"))
            ).services
        ]
        assert names == ["fleet-slow"]


# Answers that are not read.


async def test_unread_answers_keep_the_places_of_their_caller_only(redis: RedisProcess, policy: Policy) -> None:
    """gRPC holds an unread answer until its client leaves, and with it one of the places of all callers."""
    async with running(redis.url, security=policy.section, limits=SMALL_LIMITS) as server:
        async with RawConnection(server.grpc_address, reads=False) as hostile:
            for number in range(200):
                hostile.open(1 + 4 * number, CHECK)
                hostile.send(1 + 4 * number, message(b""), end=True)
                hostile.open(3 + 4 * number, f"{SERVICE}/GetStats", policy.metadata("other"))
                hostile.send(3 + 4 * number, message(b""), end=True)
            refused = await hostile.responses(2 * (200 - 16))
            for stream, trailers in refused.items():
                setting = b"limits.unauthenticated_calls" if stream % 4 == 1 else b"limits.calls"
                assert b"limit of 20 calls in flight reached (" + setting in trailers
            assert await calls_in_flight(server, policy) == 2 * 16
            await expect_service(server, policy.metadata("viewer"))

        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await calls_in_flight(server, policy) > 0:
                await asyncio.sleep(0.05)


async def test_unread_watch_ends_with_a_reason_once_its_client_reads(redis: RedisProcess, policy: Policy) -> None:
    security = {"security": policy.section, "limits": SMALL_LIMITS}
    async with running(redis.url, **security, grpc={"write_timeout_ms": 200}) as server:
        await server.stub.RegisterService(
            pb.RegisterServiceRequest(service=small_service("fleet-a")), metadata=policy.metadata("agent")
        )
        wire = message(pb.WatchEventsRequest(include_snapshot=True).SerializeToString())
        async with RawConnection(server.grpc_address, reads=False) as slow:
            for stream in range(1, 33, 2):
                slow.open(stream, f"{SERVICE}/WatchEvents", policy.metadata("viewer"))
                slow.send(stream, wire, end=True)
            await until(lambda: server.parts.hub.watchers == 16)
            await until(lambda: server.parts.hub.watchers == 0)
            with pytest.raises(grpc.aio.AioRpcError, match="limit of 20 watches in this process reached"):
                await server.stub.WatchEvents(pb.WatchEventsRequest(), metadata=policy.metadata("viewer")).read()
            slow.allow(1, 1 << 20)
            (trailers,) = (await slow.responses(1)).values()
            assert b"a message was not read within 0.2 s (grpc.write_timeout_ms)" in trailers
            await server.stub.WatchEvents(pb.WatchEventsRequest(), metadata=policy.metadata("viewer")).read()


# Streams of the standard services.


async def test_health_watches_take_no_places_of_watches(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section, limits=SMALL_LIMITS) as server:
        stub: Any = health_pb2_grpc.HealthStub(server.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(16)]  # the rest is for other addresses
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.aio.AioRpcError, match="limit of 20 health-watches in this process reached"):
            await stub.Watch(health_pb2.HealthCheckRequest()).read()
        await expect_service(server, policy.metadata("viewer"))
        with_key = stub.Watch(health_pb2.HealthCheckRequest(), metadata=policy.metadata("viewer"))
        await with_key.read()


@pytest.mark.parametrize("path", [CHECK, WATCH])
async def test_health_request_is_small(path: str, server: Server) -> None:
    """A watch keeps the name of its service, and health needs no credential."""
    channel: Any = server.channel
    large = health_pb2.HealthCheckRequest(service="a" * 2_000).SerializeToString()
    assert await channel.unary_unary(path)(large, timeout=TIMEOUT_SECONDS).code() is grpc.StatusCode.INVALID_ARGUMENT
