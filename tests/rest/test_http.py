"""HTTP semantics: methods, request ids, limits, CORS, compression and unexpected errors."""

import asyncio
import gzip
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs
from yarl import URL

from ossa_common.violations import Violation
from registry_server.errors import (
    CursorExpired,
    InvalidRequest,
    NotReplicated,
    ProbingDisabled,
    RegistryError,
    RevisionMismatch,
    RevisionNotReached,
    ServiceExists,
    ServiceNotFound,
    ShuttingDown,
    StoreUnavailable,
    WatcherTooSlow,
    WriteConflict,
)
from registry_server.gateway.middleware import MAX_URL_BYTES
from tests.rest.client import BASE, Answer, Rest, client, service
from tests.rest.http_server import http_server
from tests.rest.raw import exchange
from tests.support.redis_process import RedisProcess
from tests.support.server import Server, running

JSON = {"Content-Type": "application/json"}

METHODS = {
    "/services": "GET,HEAD,POST",
    "/services/agent": "DELETE,GET,HEAD,PUT",
    "/services/agent/health": "GET,HEAD",
    "/services/agent/heartbeat": "POST",
    "/health": "GET,HEAD",
    "/stats": "GET,HEAD",
    "/capabilities": "GET,HEAD",
    "/cleanup": "POST",
    "/events": "GET,HEAD",
}
PATHS = [*(BASE + path for path in METHODS), "/health", "/health/live", "/metrics", "/openapi.yaml", "/docs"]


@pytest.mark.parametrize("path", METHODS)
async def test_unsupported_methods_are_refused_with_the_allowed_ones(path: str, rest: Rest) -> None:
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "TRACE"} - set(METHODS[path].split(",")):
        answer = await rest.call(method, path, {} if method in {"POST", "PUT", "PATCH"} else None)
        assert (answer.status, answer.code) == (405, "METHOD_NOT_ALLOWED")
        assert answer.headers["Allow"] == METHODS[path]


@pytest.mark.parametrize("path", METHODS)
async def test_options_returns_the_methods(path: str, rest: Rest) -> None:
    answer = await rest.call("OPTIONS", path)
    assert (answer.status, answer.raw) == (204, b"")
    assert set(answer.headers["Allow"].split(", ")) == {*METHODS[path].split(","), "OPTIONS"}
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "path", ["", "/", "/nothing", "/services//", "/services/a/b", "//services", "/services/a/health//"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_unknown_paths_are_not_found(method: str, path: str, rest: Rest) -> None:
    answer = await rest.call(method, path)
    assert (answer.status, answer.code) == (404, "NOT_FOUND")


@pytest.mark.parametrize("path", PATHS)
async def test_head_is_get_without_the_body(path: str, rest: Rest) -> None:
    await rest.post("/services", service())
    if path.endswith(("heartbeat", "cleanup")):
        return
    headers = {"X-Request-Id": "1"}  # generated ones differ in length
    answer = await rest.call("HEAD", path, base="", headers=headers)
    assert (answer.status, answer.raw) == (200, b"")
    if path.endswith("/events"):
        assert answer.headers["Content-Type"] == "text/event-stream"
        return
    got = await rest.call("GET", path, base="", headers=headers)
    assert answer.headers["Content-Type"] == got.headers["Content-Type"]
    if path != "/metrics":  # metrics change between the requests
        assert answer.headers["Content-Length"] == got.headers["Content-Length"]


# Request ids.


async def test_request_id_is_returned_and_logged(rest: Rest) -> None:
    with capture_logs() as logs:
        answer = await rest.get("/services/unknown", X_Request_Id="trace-1.a:b/c=d")
    assert answer.headers["X-Request-Id"] == "trace-1.a:b/c=d"
    assert answer.body["meta"]["requestId"] == "trace-1.a:b/c=d"
    (line,) = [line for line in logs if line["event"] == "request"]
    assert line["request_id"] == "trace-1.a:b/c=d"
    assert (line["method"], line["path"], line["status"]) == ("GET", f"{BASE}/services/unknown", 404)
    assert line["log_level"] == "info"


@pytest.mark.parametrize("request_id", [None, "", "a b", 'a"b', "x" * 129, "<script>", "é"])
async def test_missing_or_invalid_request_id_is_replaced(request_id: str | None, rest: Rest) -> None:
    headers = {} if request_id is None else {"X-Request-Id": request_id}
    first = await rest.call("GET", "/stats", headers=headers)
    second = await rest.call("GET", "/stats", headers=headers)
    ids = [answer.headers["X-Request-Id"] for answer in (first, second)]
    assert ids == [answer.body["meta"]["requestId"] for answer in (first, second)]
    assert ids[0] != ids[1]
    assert first.headers["Server"] == "ossa-registry"
    assert request_id not in ids


# Limits.


async def test_too_long_url_is_refused(rest: Rest) -> None:
    room = MAX_URL_BYTES - len(f"{BASE}/services?name=")
    longest = await rest.get("/services?name=" + "a" * room)
    assert (longest.status, longest.fields) == (400, ["name"])
    too_long = await rest.get("/services?name=" + "a" * (room + 1))
    assert (too_long.status, too_long.code) == (414, "URL_TOO_LONG")


async def test_too_long_headers_and_request_lines_are_refused(server: Server) -> None:
    line = f"GET {BASE}/stats HTTP/1.1".encode()
    for headers in ([b"X: " + b"a" * 100_000], [b"X%d: a" % i for i in range(1_000)]):
        status, _, _ = await exchange(server.http, line, *headers)
        assert status == 400
    status, _, _ = await exchange(server.http, b"GET /" + b"a" * 100_000 + b" HTTP/1.1")
    assert status == 400


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_too_large_body_is_refused(method: str, *, declared: bool, rest: Rest) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(17):
            yield b" " * 65_536

    body: Any = io.BytesIO(b" " * (17 * 65_536)) if declared else chunks()
    answer = await rest.call(method, "/services" if method == "POST" else "/services/a", data=body, headers=JSON)
    assert (answer.status, answer.code) == (413, "BODY_TOO_LARGE")


async def test_body_limit_is_configurable(redis: RedisProcess) -> None:
    async with running(redis.url, http={"max_body_bytes": 65_536}) as server, client(server.http) as rest:
        body = json.dumps(service()).encode()
        fits = await rest.call("POST", "/services", data=body.ljust(65_536), headers=JSON)
        assert fits.status == 201
        too_large = await rest.call("POST", "/services", data=body.ljust(65_537), headers=JSON)
        assert too_large.status == 413


async def test_decompressed_body_is_subject_to_the_limit(rest: Rest) -> None:
    headers = {**JSON, "Content-Encoding": "gzip"}

    async def send(body: bytes) -> Answer:
        return await rest.call("POST", "/services", data=body, headers=headers)

    assert (await send(gzip.compress(json.dumps(service()).encode()))).status == 201
    assert (await send(gzip.compress(b" " * (64 << 20)))).status == 413
    invalid = await send(b"not gzip")
    assert (invalid.status, invalid.fields) == (400, ["body"])


async def test_field_above_its_limit_is_refused(rest: Rest) -> None:
    answer = await rest.post("/services", service(metadata={"labels": {"a": "x"}}, group="g" * 70_000))
    assert answer.status == 400


# CORS.


def request_from(origin: str, **more: str) -> dict[str, str]:
    return {"Origin": origin, **more}


async def cors_headers(rest: Rest, method: str, headers: dict[str, str], path: str = "/services") -> dict[str, str]:
    answer = await rest.call(method, path, headers=headers)
    assert answer.status < 300 or answer.code == "PERMISSION_DENIED"
    return {
        name: value for name, value in answer.headers.items() if name.startswith("Access-Control") or name == "Vary"
    }


async def test_cors_is_disabled_by_default(rest: Rest) -> None:
    headers = request_from("https://a.test", **{"Access-Control-Request-Method": "PUT"})
    assert await cors_headers(rest, "OPTIONS", headers) == {"Vary": "Accept-Encoding"}
    assert await cors_headers(rest, "GET", request_from("https://a.test")) == {"Vary": "Accept-Encoding"}


async def test_configured_origins_are_allowed(redis: RedisProcess) -> None:
    async with (
        running(redis.url, http={"cors_origins": "https://a.test,http://b.test:8080"}) as server,
        client(server.http) as rest,
    ):
        for origin in ("https://a.test", "http://b.test:8080"):
            simple = await cors_headers(rest, "GET", request_from(origin))
            assert simple["Access-Control-Allow-Origin"] == origin
            assert "ETag" in simple["Access-Control-Expose-Headers"]
            assert "Origin" in simple["Vary"]
            preflight = request_from(origin, **{"Access-Control-Request-Method": "PUT"})
            allowed = await cors_headers(rest, "OPTIONS", preflight, "/services/a")
            assert "PUT" in allowed["Access-Control-Allow-Methods"]
            assert "If-Match" in allowed["Access-Control-Allow-Headers"]
            assert "Access-Control-Allow-Credentials" not in allowed
        for origin in ("https://c.test", "https://a.test.evil.test", "null", "http://a.test"):
            assert "Access-Control-Allow-Origin" not in await cors_headers(rest, "GET", request_from(origin))
            assert "Origin" in (await cors_headers(rest, "GET", request_from(origin)))["Vary"]
        failed = await rest.call("GET", "/services/unknown", headers=request_from("https://a.test"))
        assert failed.headers["Access-Control-Allow-Origin"] == "https://a.test"


async def test_all_origins_can_be_allowed(redis: RedisProcess) -> None:
    async with running(redis.url, http={"cors_origins": "*"}) as server, client(server.http) as rest:
        assert (await cors_headers(rest, "GET", request_from("https://x.test")))["Access-Control-Allow-Origin"] == "*"


# Compression.


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("deflate, gzip;q=0.5", "gzip"),
        ("GZIP", "gzip"),
        ("gzip;q=0", None),
        ("gzip; q=0.0, identity", None),
        ("deflate", None),
        ("identity", None),
        ("", None),
    ],
)
async def test_large_answer_is_compressed_if_gzip_is_accepted(
    accepted: str, encoding: str | None, server: Server, rest: Rest
) -> None:
    for i in range(10):
        await rest.post("/services", service(f"agent-{i}"))
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        url = URL(f"{server.http}{BASE}/services")
        async with session.get(url, headers={"Accept-Encoding": accepted}) as response:
            assert response.headers.get("Content-Encoding") == encoding
            assert "Accept-Encoding" in response.headers["Vary"]
            body = await response.read()
            assert int(response.headers["Content-Length"]) == len(body)
    document = json.loads(gzip.decompress(body) if encoding else body)
    assert document["data"]["count"] == 10


async def test_compressed_list_is_kept_until_a_change(server: Server, rest: Rest) -> None:
    headers = {"Accept-Encoding": "gzip"}
    found = []
    async with aiohttp.ClientSession(server.http, auto_decompress=False) as session:
        for i in range(10):
            await rest.post("/services", service(f"agent-{i}"))
        for i in (10, 10, 11):
            await rest.post("/services", service(f"agent-{i}"))
            async with session.get(f"{BASE}/services", headers=headers) as response:
                found.append(json.loads(gzip.decompress(await response.read())))
    assert [each["data"]["count"] for each in found] == [11, 11, 12]
    assert len({each["meta"]["requestId"] for each in found}) == 3
    assert found[0]["data"] == found[1]["data"]


async def test_client_may_wait_before_it_sends_its_body(server: Server) -> None:
    url = URL(server.http)
    body = json.dumps(service("agent")).encode()
    head = f"POST {BASE}/services HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")
    writer.close()


async def test_small_answer_is_not_compressed(rest: Rest) -> None:
    assert "Content-Encoding" not in (await rest.get("/stats", Accept_Encoding="gzip")).headers


# Slow clients.


async def test_client_that_never_reads_is_disconnected(redis: RedisProcess) -> None:
    async with running(redis.url, http={"write_timeout_ms": 1}) as server, client(server.http) as rest:
        for i in range(20):
            capabilities = [{"name": f"c{n}", "version": "1", "description": "x" * 4_000} for n in range(12)]
            await rest.post("/services", service(f"agent-{i}", capabilities=capabilities))
        url = URL(server.http)
        with capture_logs() as logs:
            reader, writer = await asyncio.open_connection(url.host, url.port, limit=1)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(60):
                while not any(line["event"] == "slow reader disconnected" for line in logs):
                    writer.write(f"GET {BASE}/services HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                    await asyncio.sleep(0.01)
            writer.transport.abort()
        assert (await rest.get("/stats")).status == 200


async def test_body_that_does_not_arrive_in_time_is_answered_with_408(server: Server) -> None:
    http = http_server(server.parts.registry, body_timeout=0.05)
    address = await http.start()
    try:
        head = f"PUT {BASE}/services/a HTTP/1.1".encode()
        headers = (b"Content-Type: application/json", b"Content-Length: 99")
        status, _, body = await exchange(f"http://{address}", head, *headers)
    finally:
        await http.drain()
    assert status == 408
    assert json.loads(body)["error"]["code"] == "REQUEST_TIMEOUT"


# Errors.


ERRORS = [
    (InvalidRequest([Violation("service.health_check.interval", "is short")]), 400),
    (ServiceNotFound("a"), 404),
    (ServiceExists("a"), 409),
    (RevisionMismatch("a", 1, 2), 412),
    (WriteConflict("a"), 409),
    (RevisionNotReached(2, 1), 504),
    (CursorExpired("it is old"), 410),
    (WatcherTooSlow("3 events were buffered"), 429),
    (StoreUnavailable(), 503),
    (NotReplicated(7, 1, 2), 503),
    (ShuttingDown(), 503),
    (ProbingDisabled(), 501),
]


@pytest.mark.parametrize(("error", "status"), ERRORS, ids=lambda value: type(value).__name__)
async def test_errors_have_their_status_and_code(
    error: RegistryError, status: int, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(server.parts.registry, "update_service", fail)
    head = f"PUT {BASE}/services/a HTTP/1.1".encode()
    headers = [b"Content-Type: application/json", b"Content-Length: 2"]
    got, fields, body = await exchange(server.http, head, *headers, body=b"{}")
    answer = json.loads(body)
    assert (got, answer["error"]["code"]) == (status, error.reason)
    assert ("Retry-After: 1" in fields) == (status == 503)
    if isinstance(error, InvalidRequest):
        violations = [{"field": "healthCheck.intervalMs", "description": "is short"}]
        assert answer["error"]["details"] == {"violations": violations}
        assert answer["error"]["message"] == "healthCheck.intervalMs: is short"
    else:
        assert answer["error"]["details"] == error.metadata
        assert answer["error"]["message"] == str(error)


async def test_unexpected_error_is_logged_but_not_disclosed(
    server: Server, rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug() -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(server.parts.registry, "visible_stats", bug)
    with capture_logs() as logs:
        answer = await rest.get("/stats", X_Request_Id="find-me")
    assert (answer.status, answer.code) == (500, "INTERNAL")
    assert b"secret" not in answer.raw
    (line,) = [line for line in logs if line["event"] == "unexpected error"]
    assert line["request_id"] == "find-me"
    assert isinstance(line["exc_info"], RuntimeError)


async def test_malformed_http_is_refused_and_logged_below_error(
    server: Server, rest: Rest, caplog: pytest.LogCaptureFixture
) -> None:
    for line in (b"nonsense", b"GET", b"GET / HTTP/9.9", b"\x16\x03\x01\x02\x00\x01", b"G\x00T / HTTP/1.1"):
        status, _, _ = await exchange(server.http, line)
        assert status == 400
    assert (await rest.get("/stats")).status == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == [], (
        "any client could fill the log with errors"
    )


async def test_bytes_that_are_not_utf8_never_cause_a_server_error(server: Server) -> None:
    paths = [
        f"{method} {BASE}{path}"
        for method, path in (
            ("GET", "/services/"),
            ("PUT", "/services/"),
            ("DELETE", "/services/"),
            ("POST", "/services?createOnly="),
        )
    ]
    for start in paths:
        headers = [b"Content-Type: application/json", b"Content-Length: 2"]
        status, _, body = await exchange(server.http, start.encode() + b"\xff HTTP/1.1", *headers, body=b"{}")
        assert status == 400, body
    for path in ("/health", "/heartbeat"):
        method = "GET" if path == "/health" else "POST"
        status, _, _ = await exchange(
            server.http, f"{method} {BASE}/services/".encode() + b"\xff" + path.encode() + b" HTTP/1.1"
        )
        assert status == 400
    for header in (b"Last-Event-ID: \xff", b"Last-Event-ID: \xc3\xa9"):
        status, _, _ = await exchange(server.http, f"GET {BASE}/events HTTP/1.1".encode(), header)
        assert status == 400
    for header in (b"If-Match: \xff", b'If-Match: "\xff"', b"X-Request-Id: \xff", b"Content-Type: \xff"):
        status, _, _ = await exchange(server.http, f"DELETE {BASE}/services/a HTTP/1.1".encode(), header)
        assert status in (400, 404)
    for header in (b"Content-Type: application/json; charset=\xff", b"Content-Type: \xff"):
        status, _, _ = await exchange(
            server.http, f"POST {BASE}/services HTTP/1.1".encode(), header, b"Content-Length: 0"
        )
        assert status == 415
    for header in (b"Accept-Encoding: \xff", b"If-None-Match: \xff", b"Accept: \xff"):
        status, _, _ = await exchange(server.http, f"GET {BASE}/stats HTTP/1.1".encode(), header)
        assert status == 200


async def test_client_that_disconnects_within_its_body_causes_no_error(server: Server, rest: Rest) -> None:
    url = URL(server.http)
    with capture_logs() as logs:
        for _ in range(3):
            _, writer = await asyncio.open_connection(url.host, url.port)
            head = f"POST {BASE}/services HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(head.encode() + b"Content-Length: 99\r\n\r\n{")
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        assert (await rest.get("/stats")).status == 200
    assert [line for line in logs if line["log_level"] in {"error", "critical"}] == []


async def test_answers_are_never_html(rest: Rest) -> None:
    for path in ("/services/%3Cscript%3E", "/services?%3Cscript%3E=1", "/%3Cscript%3E"):
        answer = await rest.get(path, Accept="text/html")
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
