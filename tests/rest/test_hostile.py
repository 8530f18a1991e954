"""Clients that want to hold memory, connections or CPU time of the HTTP server, or use another's browser."""

import asyncio
import gc
import gzip
import json
import socket
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs
from yarl import URL

from ossa_common.cursors import Cursor, encode_cursor
from registry_server.app import Serving, serving
from registry_server.gateway.middleware import CHUNK_BYTES
from tests.rest.client import BASE, Rest, client, service
from tests.rest.raw import exchange
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running, settings

MIB = 1 << 20
JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def connection(base: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    url = URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return what the server sent until it closed the connection."""
    data = b""
    try:
        async with asyncio.timeout(20):
            while piece := await reader.read(65_536):
                data += piece
    except ConnectionError:
        pass
    return data


@asynccontextmanager
async def serving_http(redis: RedisProcess, **sections: Any) -> AsyncIterator[tuple[Serving, str]]:
    async with serving(settings(redis.url, **sections)) as served:
        await served.parts.loaded.wait()
        yield served, f"http://{served.http_address}"


# Web pages.


@pytest.mark.parametrize("headers", [{"Host": "evil.example:3002"}, {"Origin": "http://evil.example"}])
async def test_pages_of_other_sites_can_do_nothing(headers: dict[str, str], server: Server, rest: Rest) -> None:
    await rest.post("/services", service())
    for method, path, document in (
        ("GET", "/services", None),
        ("GET", "/events", None),
        ("POST", "/services", service("other")),
        ("PUT", "/services/agent", {"endpoint": "http://evil.example"}),
        ("POST", "/services/agent/heartbeat", None),
        ("POST", "/cleanup", None),
        ("DELETE", "/services/agent", None),
    ):
        answer = await rest.call(method, path, document, headers=headers)
        assert (answer.status, answer.code) == (403, "PERMISSION_DENIED"), (method, path)
        setting = "http.allowed_hosts" if "Host" in headers else "http.cors_origins"
        assert setting in answer.body["error"]["message"]
        assert "Access-Control-Allow-Origin" not in answer.headers
    for path in ("/health", "/health/live", "/metrics", "/openapi.yaml", "/docs"):
        assert (await rest.call("GET", path, headers=headers, base="")).status == 403
    assert [record.name for record in server.parts.hub.replica.records.values()] == ["agent"]


async def test_allowed_host_is_accepted(redis: RedisProcess) -> None:
    async with running(redis.url, http={"allowed_hosts": "registry.test"}) as server, client(server.http) as rest:
        assert (await rest.call("GET", "/stats", headers={"Host": "registry.test"})).status == 200
        assert (await rest.call("GET", "/stats", headers={"Host": "other.test"})).status == 403


# Bodies.


def incomplete_body(body: bytes, *headers: str) -> bytes:
    lines = (
        f"POST {BASE}/services HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body) + 1}",
        *headers,
    )
    return "\r\n".join((*lines, "", "")).encode() + body


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_bodies_are_counted_as_they_arrive_and_inflate(encoding: str, redis: RedisProcess) -> None:
    body = b" " * (MIB - 1)
    sent = gzip.compress(body)[:-8] if encoding == "gzip" else body
    request = incomplete_body(sent, f"Content-Encoding: {encoding}")
    async with (
        serving_http(redis, limits={"call_bytes": 4 * MIB}) as (served, base),
        AsyncExitStack() as stack,
        client(base) as rest,
    ):
        in_flight = served.guard.in_flight
        for _ in range(12):
            _, writer = await stack.enter_async_context(connection(base))
            writer.write(request)
        async with asyncio.timeout(20):
            while in_flight.calls.held > 4 or in_flight.bytes.held < 2 * MIB:
                await asyncio.sleep(0.01)
        assert in_flight.bytes.held <= 4 * MIB
        assert (await rest.get("/stats")).status == 200
        assert (await rest.post("/services", service())).status == 201, "small requests are not affected"
    assert (in_flight.calls.held, in_flight.bytes.held) == (0, 0)


async def test_declared_size_holds_nothing(redis: RedisProcess) -> None:
    async with serving_http(redis, limits={"call_bytes": MIB}) as (served, base), AsyncExitStack() as stack:
        for _ in range(8):
            _, writer = await stack.enter_async_context(connection(base))
            writer.write(incomplete_body(b" " * (MIB - 1))[:1000])
        async with asyncio.timeout(20):
            while served.guard.in_flight.calls.held < 8:
                await asyncio.sleep(0.01)
        assert served.guard.in_flight.bytes.held == 0


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress"])
async def test_other_encodings_are_not_supported(encoding: str, rest: Rest) -> None:
    answer = await rest.call("POST", "/services", data=b"{}", headers={**JSON, "Content-Encoding": encoding})
    assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_deflated_body_is_accepted(rest: Rest) -> None:
    body = zlib.compress(json.dumps(service()).encode())
    assert (
        await rest.call("POST", "/services", data=body, headers={**JSON, "Content-Encoding": "deflate"})
    ).status == 201


async def test_body_of_an_event_stream_is_refused(rest: Rest) -> None:
    answer = await rest.call("GET", "/events", data=b"x" * 100)
    assert (answer.status, answer.fields) == (400, ["body"])


async def test_long_content_type_costs_no_time(rest: Rest) -> None:
    started = time.thread_time()
    for value in ('a;";' + ";" * 16_000, "application/json" + ";a=b" * 4_000):
        answer = await rest.call("POST", "/services", data=b"{}", headers={"Content-Type": value})
        assert answer.status == 415
    assert time.thread_time() - started < 0.25


# Headers and connections.


async def test_connection_that_sends_nothing_is_closed(redis: RedisProcess) -> None:
    async with running(redis.url, http={"header_timeout_ms": 300}) as server, connection(server.http) as (reader, _):
        assert await ended(reader) == b""


async def test_unfinished_headers_are_limited_together(server: Server) -> None:
    async with connection(server.http) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 16_000) for i in range(98)))
        assert (await ended(reader)).startswith(b"HTTP/1.1 431")


async def test_headers_behind_a_complete_request_are_limited_too(server: Server) -> None:
    async with connection(server.http) as (reader, writer):
        first = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        second = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 16_000) for i in range(98))
        writer.write(first + second)
        answers = await ended(reader)
        assert answers.startswith(b"HTTP/1.1 200")
        assert answers.count(b"HTTP/1.1") <= 2


@pytest.mark.parametrize("part", ["trailers", "extensions"])
async def test_what_surrounds_chunks_is_limited(part: str, server: Server) -> None:
    filler = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 16_000) for i in range(60)) if part == "trailers" else b"a" * MIB
    chunks = b"2\r\n{}\r\n0\r\n" if part == "trailers" else b"2;"
    with capture_logs() as logs:
        async with connection(server.http) as (reader, writer):
            head = f"POST {BASE}/services HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + filler)
            await ended(reader)
    assert [line for line in logs if line["log_level"] == "error"] == []


async def test_bytes_of_unfinished_headers_have_a_total(redis: RedisProcess) -> None:
    part = b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 16_000) for i in range(4))
    async with running(redis.url, limits={"call_bytes": MIB}) as server, AsyncExitStack() as stack:
        readers = []
        for _ in range(40):
            reader, writer = await stack.enter_async_context(connection(server.http))
            writer.write(part)
            readers.append(reader)
        closed = 0
        async with asyncio.timeout(20):
            while closed < 25:
                await asyncio.sleep(0.01)
                closed = sum(reader.at_eof() or reader._buffer.startswith(b"HTTP/1.1 503") for reader in readers)  # type: ignore[attr-defined]
        async with client(server.http) as rest:
            assert (await rest.get("/stats")).status == 200


async def test_one_address_cannot_take_all_connections(redis: RedisProcess) -> None:
    async with running(redis.url, http={"max_connections": 20}) as server, AsyncExitStack() as stack:
        for _ in range(40):
            _, writer = await stack.enter_async_context(connection(server.http))
            writer.write(b"GET /health HTTP/1.1\r\n")
        await asyncio.sleep(0.1)
        connector = aiohttp.TCPConnector(local_addr=("127.0.0.3", 0))
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        async with session.get(f"{server.http}/health") as answer:
            assert answer.status == 200, "a client of another address is served"


async def test_idle_connections_give_way_to_new_ones_of_their_address(redis: RedisProcess) -> None:
    async with running(redis.url, http={"max_connections": 20}) as server, AsyncExitStack() as stack:
        for _ in range(60):
            await stack.enter_async_context(connection(server.http))
        for _ in range(10):
            status, _, _ = await exchange(server.http, b"GET /health HTTP/1.1")
            assert status == 200


async def test_answers_that_are_never_read_end_the_connection(redis: RedisProcess) -> None:
    """Also small ones: each fits in the buffers, but together they do not."""
    async with running(redis.url, http={"write_timeout_ms": 200}) as server:
        url = URL(server.http)
        reader, writer = await asyncio.open_connection(url.host, url.port, limit=1)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        request = f"GET /nothing HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {'a' * 128}\r\n\r\n".encode()
        try:
            async with asyncio.timeout(60):
                while not writer.transport.is_closing():
                    writer.write(request * 100)
                    await asyncio.sleep(0.01)
        finally:
            writer.transport.abort()


async def test_requests_of_a_client_that_reads_no_answer_wait(server: Server, rest: Rest) -> None:
    for i in range(20):
        document = service(f"agent-{i}")
        document["metadata"] = {"description": "d" * 2_000}
        assert (await rest.post("/services", document)).status == 201
    size = len((await rest.get("/services")).raw)
    assert 40_000 < size < CHUNK_BYTES
    sent = 2_000
    async with connection(server.http) as (reader, writer):
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"GET {BASE}/services HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * sent)
        answered, before = 0, -1
        while answered != before:
            await asyncio.sleep(0.3)
            before, answered = answered, await answers(rest, f"{BASE}/services", "GET")
    assert answered < sent / 4, f"the connection holds {answered * size >> 20} MiB"


async def answers(rest: Rest, path: str, method: str) -> int:
    """Return how many requests were answered."""
    text = (await rest.get_outside_api("/metrics")).raw.decode()
    start = f'ossa_registry_http_requests_total{{method="{method}",route="{path}",status="200"}} '
    return next(int(float(line.removeprefix(start))) for line in text.splitlines() if line.startswith(start))


# CPU time.


async def test_assets_are_compressed_once(server: Server) -> None:
    async with aiohttp.ClientSession(server.http, auto_decompress=False) as session:

        async def load(encoding: str) -> tuple[bytes, float]:
            started = time.process_time()
            async with session.get("/docs/swagger-ui-bundle.js", headers={"Accept-Encoding": encoding}) as answer:
                return await answer.read(), time.process_time() - started

        first, _ = await load("gzip")
        seconds = 0.0
        for _ in range(20):
            again, spent = await load("gzip")
            seconds += spent
            assert again == first
        plain, _ = await load("identity")
    assert gzip.decompress(first) == plain
    started = time.process_time()
    gzip.compress(plain)
    assert seconds < 10 * (time.process_time() - started), "20 answers cost less than half of compressing each"


async def test_malformed_requests_are_charged(redis: RedisProcess) -> None:
    async with running(redis.url, limits={"requests_per_second": 1, "request_burst": 10}) as server:
        statuses = [(await exchange(server.http, b"nonsense"))[0] for _ in range(30)]
    assert statuses[0] == 400
    assert statuses[-1] == 429


@pytest.mark.parametrize("start", ["snapshot=true", "lastEventId={cursor}"])
async def test_beginnings_of_event_streams_that_are_never_read_are_limited_in_bytes(
    start: str, redis: RedisProcess
) -> None:
    """Each holds a batch of 256 KiB of its own."""
    async with running(redis.url, limits={"call_bytes": MIB}) as server, AsyncExitStack() as stack:
        async with client(server.http) as rest:
            capabilities = [{"name": f"c{n}", "version": "1", "description": "x" * 4_000} for n in range(12)]
            for i in range(20):
                answer = await rest.post("/services", service(f"agent-{i}", capabilities=capabilities))
                assert answer.status == 201
        url = URL(server.http)
        query = start.format(cursor=encode_cursor(Cursor(server.parts.replica.position.epoch, 0)))
        with capture_logs() as logs:
            for _ in range(20):
                reading = stack.enter_context(socket.socket())
                reading.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                reading.settimeout(0)
                await asyncio.get_running_loop().sock_connect(reading, (str(url.host), url.port))
                request = f"GET {BASE}/events?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"
                await asyncio.get_running_loop().sock_sendall(reading, request.encode())
            async with asyncio.timeout(20):
                while sum(line["event"] == "slow reader disconnected" for line in logs) < 10:
                    await asyncio.sleep(0.01)


FILLER = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 7_000) for i in range(8))
NOT_READ = (
    b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    + (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + FILLER + b"\r\n") * 3
)


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\n" + b"a" * 300_000,
        b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"a" * 300_000,
        NOT_READ,
    ],
    ids=["preface", "connect", "unread answer"],
)
async def test_nothing_is_kept_of_a_connection(sent: bytes, server: Server) -> None:
    """Not even until the garbage collector runs: errors referred to their connection and to its data."""
    url = URL(server.http)
    loop = asyncio.get_running_loop()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(20):
            with socket.socket() as client_socket:
                client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                client_socket.settimeout(0)
                await loop.sock_connect(client_socket, (str(url.host), url.port))
                with suppress(ConnectionError):
                    async with asyncio.timeout(20):
                        await loop.sock_sendall(client_socket, sent)
                        await loop.sock_recv(client_socket, 1)
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < 2 * MIB
