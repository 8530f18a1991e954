"""Limits: how often, how many at a time, how large, how slow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import RegistryClient
from registry_server.errors import LimitExceeded, RateLimited
from registry_server.rpc.status import DETAILS_KEY
from registry_server.security.limits import MAX_BUCKETS, Buckets, Gauge
from tests.support.redis_process import RedisProcess
from tests.support.security import Policy, bearer
from tests.support.server import Server, connected, running

STATS = "/api/v1/registry/stats"
EVENTS = "/api/v1/registry/events"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# The bucket.


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 5), max_size=120),
)
def test_a_bucket_is_one_that_fills_at_its_rate(rate: float, burst: int, pauses: list[float]) -> None:
    clock, tokens = Clock(), float(burst)
    buckets = Buckets(clock)
    for pause in pauses:
        clock.now += pause
        tokens = min(burst, tokens + pause * rate)
        if abs(tokens - 1) < 1e-6:  # where rounding may go either way
            return
        if tokens > 1:
            buckets.take_token("a", rate, burst)
            tokens -= 1
            continue
        with pytest.raises(RateLimited) as caught:
            buckets.take_token("a", rate, burst)
        assert caught.value.retry_after == pytest.approx((1 - tokens) / rate, rel=1e-3, abs=1e-6)


def test_callers_do_not_share_a_bucket() -> None:
    buckets = Buckets(Clock())
    buckets.take_token("a", 1, 1)
    buckets.take_token("b", 1, 1)
    with pytest.raises(RateLimited):
        buckets.take_token("a", 1, 1)


def test_the_table_of_buckets_is_bounded_and_forgets_who_did_nothing_for_long() -> None:
    clock = Clock()
    buckets = Buckets(clock)
    for i in range(MAX_BUCKETS):
        buckets.take_token(i, 1, 2)
    clock.now += 10
    buckets.take_token("late", 1, 1)
    assert len(buckets) == 1
    for i in range(3 * MAX_BUCKETS):
        buckets.take_token(i, 1, 2)
    assert len(buckets) <= MAX_BUCKETS


def test_a_gauge_counts_each_and_all_and_comes_back_to_zero() -> None:
    gauge = Gauge("things", 3)
    with gauge.count("a", 2), gauge.count("a", 2):
        with pytest.raises(LimitExceeded, match="at most 2 things"), gauge.count("a", 2):
            pass
        with gauge.count("b", 2), pytest.raises(LimitExceeded, match="at most 3 things"), gauge.count("c", 2):
            pass
    assert gauge.total == 0
    assert not gauge._counts


# Calls a second.


def details(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    """Reason and seconds to wait."""
    found = dict(error.trailing_metadata())
    raw = found[DETAILS_KEY]
    assert isinstance(raw, bytes)
    info, retry = ErrorInfo(), RetryInfo()
    for detail in Status.FromString(raw).details:
        for known in (info, retry):
            if detail.Is(known.DESCRIPTOR):
                detail.Unpack(known)
    return info.reason, retry.retry_delay.ToNanoseconds() / 1e9


async def exhaust(server: Server, metadata: Any = ()) -> grpc.aio.AioRpcError:
    async def calls() -> None:
        for _ in range(50):
            await server.stub.GetStats(pb.GetStatsRequest(), metadata=metadata)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await calls()
    return caught.value


SLOW = {"requests_per_second": 1, "request_burst": 5}


async def test_too_many_calls_are_refused_with_the_time_to_wait(redis: RedisProcess) -> None:
    async with running(redis.url, limits=SLOW) as server:
        error = await exhaust(server)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        reason, wait = details(error)
        assert reason == "RATE_LIMITED"
        assert 0 < wait <= 1
        async with aiohttp.ClientSession(server.http) as session:
            async with session.get(STATS) as answer:  # of the same address
                assert answer.status == 429
                assert 1 <= int(answer.headers["Retry-After"]) <= 2
                assert (await answer.json())["error"]["code"] == "RATE_LIMITED"
            for _ in range(20):
                async with session.get("/health") as answer:
                    assert answer.status == 200, "probes of a platform are not counted"


async def test_each_identity_has_its_own_bucket(redis: RedisProcess, policy: Policy) -> None:
    policy.document["api_keys"][0]["limits"] = {"requests_per_second": 0.5, "burst": 3}
    policy.write()
    async with running(redis.url, security=policy.section) as server:
        assert details(await exhaust(server, policy.metadata("viewer")))[0] == "RATE_LIMITED"
        for _ in range(20):
            await server.stub.GetStats(pb.GetStatsRequest(), metadata=policy.metadata("admin"))


async def test_messages_of_keep_alive_count_as_calls(redis: RedisProcess) -> None:
    async with running(redis.url, limits=SLOW) as server:
        call = server.stub.KeepAlive()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _beat(call, 50)
        assert details(caught.value)[0] == "RATE_LIMITED"


async def _beat(call: Any, times: int) -> None:
    for _ in range(times):
        await call.write(pb.KeepAliveRequest(names=["a"]))
        await call.read()


async def test_the_sdk_waits_and_comes_through(redis: RedisProcess) -> None:
    async with (
        running(redis.url, limits={"requests_per_second": 10, "request_burst": 2}) as server,
        RegistryClient(server.grpc_address, timeout=60) as client,
    ):
        for _ in range(6):
            await client.get_stats()


async def test_guessing_of_credentials_is_slowed_down_and_those_who_are_known_are_not(
    redis: RedisProcess, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from registry_server.security import guard  # noqa: PLC0415

    monkeypatch.setattr(guard, "VERIFICATION_BURST", 5)
    monkeypatch.setattr(guard, "VERIFICATIONS_PER_SECOND", 0.01)
    async with running(redis.url, security=policy.section) as server:
        await server.stub.GetStats(pb.GetStatsRequest(), metadata=policy.metadata("viewer"))
        codes = [
            await server.stub.GetStats(pb.GetStatsRequest(), metadata=bearer(f"ossa_guess{i}")).code() for i in range(8)
        ]
        assert codes == [grpc.StatusCode.UNAUTHENTICATED] * 4 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 4
        await server.stub.GetStats(pb.GetStatsRequest(), metadata=policy.metadata("viewer"))


# Streams.


@asynccontextmanager
async def watching(server: Server, metadata: Any = ()) -> AsyncIterator[None]:
    call = server.stub.WatchEvents(pb.WatchEventsRequest(), metadata=metadata)
    try:
        await call.read()
        yield
    finally:
        call.cancel()


async def test_watches_of_one_caller_and_of_all_are_bounded(redis: RedisProcess, policy: Policy) -> None:
    limits = {"watches_per_caller": 2, "watches": 3}
    # A disconnected client is noticed when the next keep-alive comment is sent.
    http = {"events_keep_alive_ms": 500}
    async with running(redis.url, security=policy.section, limits=limits, http=http) as server:
        one, two = policy.metadata("viewer"), policy.metadata("admin")
        async with aiohttp.ClientSession(server.http, headers=policy.headers("viewer")) as session:
            async with watching(server, one), session.get(EVENTS) as stream:
                assert stream.status == 200
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    async with watching(server, one):
                        pass
                assert details(caught.value)[0] == "LIMIT_EXCEEDED"
                async with session.get(EVENTS) as refused:
                    assert refused.status == 429
                    assert (await refused.json())["error"]["details"] == {"limit": "watches", "most": "2"}
                async with watching(server, two):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        async with watching(server, two):
                            pass
                    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            async with asyncio.timeout(20):
                while server.parts.hub.watchers:
                    await asyncio.sleep(0.01)
        async with watching(server, one), watching(server, one):
            pass


async def test_a_stream_on_which_nothing_comes_is_ended(redis: RedisProcess) -> None:
    async with running(redis.url, limits={"stream_idle_seconds": 1}) as server:
        for beats in (0, 1):
            call = server.stub.KeepAlive()
            await _beat(call, beats)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async with asyncio.timeout(20):
                    await call.read()
            assert details(caught.value)[0] == "LIMIT_EXCEEDED"


# Sizes.


async def test_too_much_metadata_is_refused(redis: RedisProcess) -> None:
    async with running(redis.url, grpc={"max_metadata_bytes": 4096}) as server:
        await server.stub.GetStats(pb.GetStatsRequest(), metadata=(("x-small", "a" * 1000),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub.GetStats(pb.GetStatsRequest(), metadata=(("x-large", "a" * 9000),))
        assert caught.value.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}
        async with connected(server.grpc_address) as (_, stub):
            await stub.GetStats(pb.GetStatsRequest())


@pytest.mark.parametrize(
    "headers",
    [{f"x-{i}": "a" for i in range(40)}, {"x-large": "a" * 3000}],
    ids=["too many", "too large"],
)
async def test_too_many_or_too_large_headers_are_refused(headers: dict[str, str], redis: RedisProcess) -> None:
    async with (
        running(redis.url, http={"max_headers": 20, "max_header_bytes": 2048}) as server,
        aiohttp.ClientSession(server.http) as session,
    ):
        async with session.get(STATS, headers=headers) as answer:
            assert answer.status == 400
        async with session.get(STATS) as answer:
            assert answer.status == 200


# Slow clients.

HALF = b"GET /health HTTP/1.1\r\nHost: registry.test\r\n"
REST = b"Connection: keep-alive\r\n\r\n"


async def test_headers_that_do_not_come_to_an_end_are_not_waited_for(redis: RedisProcess) -> None:
    async with running(redis.url, http={"header_timeout_ms": 300}) as server:
        host, _, port = server.http.removeprefix("http://").rpartition(":")
        for first in (b"", HALF + REST):  # at the beginning of a connection, and after a request
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(first)
            if first:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                await reader.readuntil(b"}")
            trickle = asyncio.create_task(_trickle(writer))
            async with asyncio.timeout(20):  # a byte at a time does not help
                assert await reader.read() == b""
            writer.transport.abort()
            await trickle


async def _trickle(writer: asyncio.StreamWriter) -> None:
    for byte in HALF + b"X-Slow: " + b"a" * 400:
        if writer.is_closing():
            return
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


async def test_headers_in_pieces_within_the_time_are_taken(redis: RedisProcess) -> None:
    async with running(redis.url, http={"header_timeout_ms": 20_000}) as server:
        host, _, port = server.http.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(2):
            for piece in (HALF[:10], HALF[10:], REST):
                writer.write(piece)
                await asyncio.sleep(0.02)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            await reader.readuntil(b"}")
        writer.transport.abort()
