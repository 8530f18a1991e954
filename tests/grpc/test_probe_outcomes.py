"""Checks of each kind of endpoint: requests and results."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf.json_format import MessageToDict

from ossa.registry.v1.service_pb2 import HealthStatus
from tests.grpc.calls import DEGRADED, HEALTHY, UNHEALTHY, get, health_of, register
from tests.grpc.probing import TIMED_OUT, check, register_and_wait_for_probe, service, wait_for_first_probe
from tests.support.endpoints import (
    BROKEN,
    FINE,
    Agent,
    Target,
    agents,
    answer,
    black_hole,
    closed_port,
    grpc_server,
    listening,
    make_certificates,
    reports,
    respond,
)
from tests.support.server import Server

pytestmark = pytest.mark.usefixtures("no_pause_detection")


def serving(*parts: bytes, before: float = 0, after: float = 0) -> Target:
    """Return a server that responds with ``parts``, see ``respond``."""
    return partial(listening, respond(*parts, before=before, after=after))


@asynccontextmanager
async def unreachable(place: Callable[[], AbstractContextManager[int]]) -> AsyncIterator[int]:
    """Open an endpoint without a server and yield its port."""
    with place() as port:
        yield port


class Row(NamedTuple):
    """An endpoint and the expected result of its check."""

    name: str
    scheme: str
    target: Target
    status: HealthStatus.ValueType
    error: str = ""
    details: dict[str, Any] | None = None
    check: dict[str, Any] | None = None


SHORT_TIMEOUT = {"timeout": "0.200s"}
TABLE = [
    Row("200", "http", serving(answer(b"fine")), HEALTHY),
    Row("204", "http", serving(answer(status="204 No Content")), HEALTHY),
    Row("301", "http", serving(answer(status="301 Moved", headers="Location: /new\r\n")), UNHEALTHY, "HTTP 301"),
    Row("404", "http", serving(answer(status="404 Not Found")), UNHEALTHY, "HTTP 404"),
    Row("500", "http", serving(BROKEN), UNHEALTHY, "HTTP 500"),
    Row("500-json", "http", serving(answer(b'{"db":"down"}', "500 Oops")), UNHEALTHY, "HTTP 500", {"db": "down"}),
    Row("slow", "http", serving(FINE, before=0.06), DEGRADED, "slower than 30 ms", None, {"degradedAfter": "0.030s"}),
    Row("hanging", "http", serving(after=60), UNHEALTHY, TIMED_OUT, None, SHORT_TIMEOUT),
    Row(
        "closing-mid-body",
        "http",
        serving(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
        UNHEALTHY,
        "closed the connection before the answer was complete",
    ),
    Row("garbage", "http", serving(b"\x00\x01\x02\xff\r\n\r\n"), UNHEALTHY, "not an HTTP answer"),
    Row("10-MB", "http", serving(answer(b"x" * 10_000_000)), HEALTHY),
    Row("json", "http", serving(answer(b'{"status":"ok","load":0.5}')), HEALTHY, "", {"status": "ok", "load": 0.5}),
    Row(
        "json-degraded",
        "http",
        serving(answer(b'{"status":"degraded","queue":900}')),
        DEGRADED,
        "the service reports that it is degraded",
        {"status": "degraded", "queue": 900},
    ),
    Row("http-closed", "http", partial(unreachable, closed_port), UNHEALTHY, "connection refused"),
    Row("http-blackholed", "http", partial(unreachable, black_hole), UNHEALTHY, TIMED_OUT, None, SHORT_TIMEOUT),
    Row("grpc-serving", "grpc", partial(grpc_server, reports(1)), HEALTHY),
    Row("grpc-not-serving", "grpc", partial(grpc_server, reports(2)), UNHEALTHY, "the service reports NOT_SERVING"),
    Row("grpc-unimplemented", "grpc", grpc_server, UNHEALTHY, "the server does not offer grpc.health.v1"),
    Row("grpc-closed", "grpc", partial(unreachable, closed_port), UNHEALTHY, "connection refused"),
    Row("tcp-open", "tcp", serving(after=60), HEALTHY),
    Row("tcp-closed", "tcp", partial(unreachable, closed_port), UNHEALTHY, "connection refused"),
    Row("tcp-blackholed", "tcp", partial(unreachable, black_hole), UNHEALTHY, TIMED_OUT, None, SHORT_TIMEOUT),
    Row("ws-open", "ws", serving(after=60), HEALTHY),
]

CheckResults = dict[str, tuple[str, str, dict[str, Any] | None]]


async def check_endpoints(server: Server, rows: Iterable[Row]) -> CheckResults:
    """Register and check a service for each endpoint; compare the result with the health that clients read."""
    async with AsyncExitStack() as stack:
        names = []
        for row in rows:
            port = await stack.enter_async_context(row.target())
            await register(server, service(row.name, f"{row.scheme}://127.0.0.1:{port}", row.check))
            names.append(row.name)
        await wait_for_first_probe(server, *names)
        results: CheckResults = {}
        for name in names:
            health = await check(server, name)
            assert (await health_of(server, name)).health == health, name
            assert (await get(server, name)).health.status == health.status, name
            assert health.last_check.ToNanoseconds() > 0
            assert health.HasField("response_time"), name
            details = MessageToDict(health.details) if health.HasField("details") else None
            results[name] = (HealthStatus.Name(health.status), health.error, details)
        return results


def expected_results(rows: Iterable[Row]) -> CheckResults:
    return {row.name: (HealthStatus.Name(row.status), row.error, row.details) for row in rows}


async def test_each_kind_of_endpoint_has_the_expected_status_and_error(probing: Server) -> None:
    assert await check_endpoints(probing, TABLE) == expected_results(TABLE)


async def test_self_signed_certificate_is_not_trusted(probing: Server, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    context, credentials = certificates.context("self-signed"), certificates.credentials("self-signed")
    untrusted = "TLS: certificate is not trusted (self-signed certificate)"
    rows = [
        Row("https", "https", partial(listening, Agent().serve, tls=context), UNHEALTHY, untrusted),
        Row("grpcs", "grpcs", partial(grpc_server, reports(1), credentials=credentials), UNHEALTHY, untrusted),
    ]
    assert await check_endpoints(probing, rows) == expected_results(rows)


async def test_response_time_of_a_check_is_returned(probing: Server) -> None:
    async with listening(respond(FINE, before=0.1)) as port:
        await register(probing, service("a", f"http://127.0.0.1:{port}"))
        assert (await check(probing)).response_time.ToMilliseconds() >= 95


@pytest.mark.parametrize(
    ("path", "probe", "requested"),
    [
        ("", None, "GET /health"),
        ("/", None, "GET /health"),
        ("/agents/7", None, "GET /agents/7/health"),
        ("/agents/7/", None, "GET /agents/7/health"),
        ("/agents/7/", {"path": "/ready?deep=1"}, "GET /agents/7/ready?deep=1"),
        ("", {"path": "/", "method": "HEAD"}, "HEAD /"),
    ],
)
async def test_path_of_the_check_is_appended_to_the_endpoint(
    probing: Server, agent: Agent, path: str, probe: dict[str, Any] | None, requested: str
) -> None:
    await register(probing, service("a", agent.endpoint(path), None if probe is None else {"http": probe}))
    assert (await check(probing)).status == HEALTHY
    assert set(agent.requests) == {requested + " HTTP/1.1"}


@pytest.mark.parametrize("location", ["agent", "http://169.254.169.254/latest/meta-data", "/elsewhere"])
async def test_redirect_is_not_followed(probing: Server, location: str) -> None:
    async with agents(2) as [redirecting, elsewhere]:
        target = elsewhere.endpoint("/health") if location == "agent" else location
        redirecting.response = answer(status="302 Found", headers=f"Location: {target}\r\n")
        await register_and_wait_for_probe(probing, service("a", redirecting.endpoint()))
        health = await check(probing)
        assert (health.status, health.error) == (UNHEALTHY, "HTTP 302")
        assert redirecting.requests == ["GET /health HTTP/1.1"] * 2
        assert elsewhere.connections == 0
