"""Limits on call rates, concurrent streams, sizes and slow clients."""

import asyncio
import base64
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import RegistryClient
from registry_server.rpc.status import DETAILS_KEY
from tests.support.redis_process import RedisProcess
from tests.support.security import Policy, bearer, token
from tests.support.server import Server, ServerProcess, connected, running

STATS = "/api/v1/registry/stats"
EVENTS = "/api/v1/registry/events"


# Call rates.


def reason_and_delay(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    """Return the reason of an error and the retry delay in seconds."""
    found = dict(error.trailing_metadata())
    raw = found[DETAILS_KEY]
    assert isinstance(raw, bytes)
    info, retry = ErrorInfo(), RetryInfo()
    for detail in Status.FromString(raw).details:
        for known in (info, retry):
            if detail.Is(known.DESCRIPTOR):
                detail.Unpack(known)
    return info.reason, retry.retry_delay.ToNanoseconds() / 1e9


async def exceed_rate(server: Server, metadata: Any = ()) -> grpc.aio.AioRpcError:
    """Call until a call fails; return its error."""

    async def call_repeatedly() -> None:
        for _ in range(50):
            await server.stub.GetStats(pb.GetStatsRequest(), metadata=metadata)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_repeatedly()
    return caught.value


LOW_RATE = {"requests_per_second": 1, "request_burst": 5}


async def test_excess_calls_are_rejected_with_a_retry_delay(redis: RedisProcess) -> None:
    async with running(redis.url, limits=LOW_RATE) as server:
        error = await exceed_rate(server)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        reason, wait = reason_and_delay(error)
        assert reason == "RATE_LIMITED"
        assert 0 < wait <= 1
        async with aiohttp.ClientSession(server.http) as session:
            async with session.get(STATS) as answer:  # from the same address
                assert answer.status == 429
                assert 1 <= int(answer.headers["Retry-After"]) <= 2
                assert (await answer.json())["error"]["code"] == "RATE_LIMITED"
            for _ in range(20):
                async with session.get("/health") as answer:
                    assert answer.status == 200, "probes of a platform are not limited"


async def test_each_identity_has_a_separate_rate_limit(redis: RedisProcess, policy: Policy) -> None:
    policy.document["api_keys"][0]["limits"] = {"requests_per_second": 0.5, "burst": 3}
    policy.write()
    async with running(redis.url, security=policy.section) as server:
        assert reason_and_delay(await exceed_rate(server, policy.metadata("viewer")))[0] == "RATE_LIMITED"
        for _ in range(20):
            await server.stub.GetStats(pb.GetStatsRequest(), metadata=policy.metadata("admin"))


async def test_keep_alive_messages_count_as_calls(redis: RedisProcess) -> None:
    async with running(redis.url, limits=LOW_RATE) as server:
        call = server.stub.KeepAlive()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _send_heartbeats(call, 50)
        assert reason_and_delay(caught.value)[0] == "RATE_LIMITED"


async def _send_heartbeats(call: Any, times: int) -> None:
    for _ in range(times):
        await call.write(pb.KeepAliveRequest(names=["a"]))
        await call.read()


async def test_sdk_waits_and_retries_rate_limited_calls(redis: RedisProcess) -> None:
    async with (
        running(redis.url, limits={"requests_per_second": 10, "request_burst": 2}) as server,
        RegistryClient(server.grpc_address, timeout=60) as client,
    ):
        for _ in range(6):
            await client.get_stats()


async def test_junk_credentials_do_not_lock_out_good_ones_of_the_address(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section) as server:

        async def code_of(credential: str) -> grpc.StatusCode:
            call = server.stub.GetStats(pb.GetStatsRequest(), metadata=bearer(credential))
            code: grpc.StatusCode = await call.code()
            return code

        forged = token(roles=["admin"]).rpartition(".")[0]
        junk = [f"ossa_guess{i}" for i in range(1_000)]
        junk += [f"{forged}.{base64.urlsafe_b64encode(bytes([i]) * 256).decode().rstrip('=')}" for i in range(200)]
        for credentials in (junk[:600], junk[600:]):
            codes = await asyncio.gather(*(code_of(credential) for credential in credentials))
            assert set(codes) == {grpc.StatusCode.UNAUTHENTICATED}
        good = [policy.keys["viewer"], *(token(f"s{i}", roles=["viewer"]) for i in range(50))]
        assert {await code_of(credential) for credential in good} == {grpc.StatusCode.OK}


# HTTP requests that no permission covers.


async def test_unknown_paths_and_methods_are_charged(redis: RedisProcess, policy: Policy) -> None:
    limits = {"requests_per_second": 1, "request_burst": 10}
    for method, path in (("GET", "/nothing"), ("PATCH", STATS), ("GET", "/" + "a" * 9_000)):
        async with (
            running(redis.url, security=policy.section, limits=limits) as server,
            aiohttp.ClientSession(server.http) as session,
        ):
            statuses = [await status_of(session, method, path) for _ in range(30)]
            assert statuses[0] in {404, 405, 414}
            assert statuses[-1] == 429
            assert statuses.count(429) >= 15
            assert await status_of(session, "GET", "/health") == 200


async def status_of(session: aiohttp.ClientSession, method: str, path: str, **headers: str) -> int:
    async with session.request(method, path, headers=headers) as answer:
        return answer.status


async def test_cross_site_writes_are_rejected_whatever_their_credential(redis: RedisProcess, policy: Policy) -> None:
    async with (
        running(redis.url, security=policy.section) as server,
        aiohttp.ClientSession(server.http, headers=policy.headers("admin")) as session,
    ):
        cleanup, cross_site = "/api/v1/registry/cleanup", {"Sec-Fetch-Site": "cross-site"}
        assert await status_of(session, "POST", cleanup) == 200
        assert await status_of(session, "POST", cleanup, **cross_site) == 403
        assert await status_of(session, "GET", STATS, **cross_site) == 200


# Streams.


@asynccontextmanager
async def watching(server: Server, metadata: Any = ()) -> AsyncIterator[None]:
    call = server.stub.WatchEvents(pb.WatchEventsRequest(), metadata=metadata)
    try:
        await call.read()
        yield
    finally:
        call.cancel()


async def test_watches_are_limited_per_caller_and_in_total(redis: RedisProcess, policy: Policy) -> None:
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
                assert reason_and_delay(caught.value)[0] == "LIMIT_EXCEEDED"
                for query in ({}, {"invalid": "query"}):  # a call is admitted before it is parsed
                    async with session.get(EVENTS, params=query) as rejected:
                        assert rejected.status == 429
                        assert (await rejected.json())["error"]["details"] == {"limit": "watches", "most": "2"}
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


async def test_idle_keep_alive_stream_is_ended(redis: RedisProcess) -> None:
    async with running(redis.url, limits={"stream_idle_seconds": 1}) as server:
        for heartbeats in (0, 1):
            call = server.stub.KeepAlive()
            await _send_heartbeats(call, heartbeats)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async with asyncio.timeout(20):
                    await call.read()
            assert reason_and_delay(caught.value)[0] == "LIMIT_EXCEEDED"


# Connections.


async def test_grpc_connections_leave_files_for_http(redis: RedisProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with AsyncExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            server = await stack.enter_async_context(running(redis.url))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        host, _, port = server.grpc_address.rpartition(":")
        connections = [await asyncio.open_connection(host, int(port)) for _ in range(220)]

        async def is_closed(reader: asyncio.StreamReader) -> bool:
            try:
                async with asyncio.timeout(2):
                    return not await reader.read(1)
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        closed = await asyncio.gather(*(is_closed(reader) for reader, _ in connections))
        assert 200 * 0.7 < closed.count(False) <= 200 * 0.8
        async with aiohttp.ClientSession(server.http) as session, session.get(STATS) as answer:
            assert answer.status == 200
        for _, writer in connections:
            writer.transport.abort()


# Sizes.


async def test_metadata_above_the_limit_is_rejected(redis: RedisProcess) -> None:
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
async def test_headers_above_the_limits_are_rejected(headers: dict[str, str], redis: RedisProcess) -> None:
    async with (
        running(redis.url, http={"max_headers": 20, "max_header_bytes": 2048}) as server,
        aiohttp.ClientSession(server.http) as session,
    ):
        async with session.get(STATS, headers=headers) as answer:
            assert answer.status == 400
        async with session.get(STATS) as answer:
            assert answer.status == 200


# Slow clients.

HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
REST = b"Connection: keep-alive\r\n\r\n"


async def test_incomplete_headers_close_the_connection(redis: RedisProcess) -> None:
    async with running(redis.url, http={"header_timeout_ms": 300}) as server:
        host, _, port = server.http.removeprefix("http://").rpartition(":")
        for first in (b"", HALF + REST):  # on a new connection, and after a request
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(first)
            if first:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                await reader.readuntil(b"}")
            sending = asyncio.create_task(_send_slowly(writer))
            async with asyncio.timeout(20):  # single bytes do not extend the time limit
                assert await reader.read() == b""
            writer.transport.abort()
            await sending


async def _send_slowly(writer: asyncio.StreamWriter) -> None:
    for byte in HALF + b"X-Slow: " + b"a" * 400:
        if writer.is_closing():
            return
        writer.write(bytes([byte]))
        await asyncio.sleep(0.05)


async def test_headers_in_pieces_are_accepted_within_the_time_limit(redis: RedisProcess) -> None:
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


async def test_server_opens_as_many_files_as_the_hard_limit_allows(redis: RedisProcess) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with AsyncExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        try:
            server = await stack.enter_async_context(ServerProcess(f"--redis.url={redis.url}"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert resource.prlimit(server.pid, resource.RLIMIT_NOFILE) == (hard, hard)
