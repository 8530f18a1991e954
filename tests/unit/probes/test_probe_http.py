"""HTTP probes: requests, the outcome of each answer and failure, and limits."""

import asyncio
import socket
from collections.abc import Callable

import pytest
from google.protobuf.json_format import MessageToDict

from registry_server import __version__
from registry_server.probes import Outcome
from registry_server.probes.prober import Prober
from registry_server.security.egress import EgressPolicy
from tests.support.endpoints import answer, listening, request, respond
from tests.unit.probes.probe_tables import HTTP, Http
from tests.unit.probes.probing import FAILED, OK, SHORT_TIMEOUT, TIMED_OUT, Check, plan, send_probe


@pytest.mark.parametrize("row", HTTP, ids=[row.name for row in HTTP])
def test_http_outcomes(row: Http, runner: asyncio.Runner) -> None:
    async def run() -> Outcome:
        async with listening(row.server) as port:
            return await send_probe(f"http://127.0.0.1:{port}", row.check)

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error) == (row.kind, row.error)
    assert (None if outcome.details is None else MessageToDict(outcome.details)) == row.details
    assert 0 < outcome.response_time < 5


async def record_requests(
    handler: Callable[[bytes, asyncio.StreamWriter], None], check: Check, *, path: str = ""
) -> list[bytes]:
    """Send two probes to a server and return their requests, with the port replaced by ``PORT``."""
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request(reader))
        handler(requests[-1], writer)

    async with listening(handle) as port, Prober(EgressPolicy()) as prober:
        for _ in range(2):
            outcome = await prober.send_probe(plan(f"http://127.0.0.1:{port}{path}", check))
            assert outcome.kind is OK, outcome
    return [sent.replace(f":{port}".encode(), b":PORT") for sent in requests]


def respond_and_set_cookie(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(headers="Set-Cookie: session=1; Path=/\r\n"))


async def test_default_request_is_get_health_with_few_headers_and_no_cookies() -> None:
    expected = (
        b"GET /base/health HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nUser-Agent: ossa-registry/%s\r\n"
        b"Accept-Encoding: identity\r\nConnection: close\r\nAccept: */*\r\n\r\n" % __version__.encode()
    )
    assert await record_requests(respond_and_set_cookie, {}, path="/base/?debug=1#top") == [expected, expected]


async def test_request_has_method_path_and_headers_of_the_check() -> None:
    headers = {"X-Token": "secret", "Host": "agent.test", "user-agent": "mine", "Accept": "application/json"}
    check = {"http": {"method": "POST", "path": "/a%7Eb/../ready?x=%20y", "headers": headers}}
    sent, _ = await record_requests(respond_and_set_cookie, check)
    first, *lines = sent.decode().strip().split("\r\n")
    assert first == "POST /a%7Eb/../ready?x=%20y HTTP/1.1"
    assert sorted(line.lower() for line in lines) == [
        "accept-encoding: identity",
        "accept: application/json",
        "connection: close",
        "content-length: 0",
        "host: agent.test",
        "user-agent: mine",
        "x-token: secret",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Length", "5"),
        ("Content-Length", "many"),
        ("Transfer-Encoding", "chunked"),
        ("Expect", "100-continue"),
        ("Connection", "upgrade"),
        ("X-Name", "\u00e9"),
    ],
)
async def test_invalid_headers_at_most_time_out_the_probe(name: str, value: str) -> None:
    async with listening(respond(answer())) as port:
        check = {"http": {"method": "POST", "headers": {name: value}}, "timeout": SHORT_TIMEOUT}
        assert (await send_probe(f"http://127.0.0.1:{port}", check)).error in {"", TIMED_OUT}


def test_only_the_beginning_of_a_large_body_is_received(runner: asyncio.Runner) -> None:
    sent = 0

    async def send_large_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        writer.transport.set_write_buffer_limits(0)
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")
        for _ in range(10_000):
            writer.write(b"x" * 1_000)
            await writer.drain()
            sent += 1_000

    async def run() -> Outcome:
        async with listening(send_large_body) as port:
            outcome = await send_probe(f"http://127.0.0.1:{port}")
            await asyncio.sleep(0.05)  # for further data that the server could still send
            return outcome

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error, outcome.details) == (OK, "", None)
    # 4 KiB of the body and the contents of the socket buffers on both sides.
    assert sent < 100_000


async def test_request_is_not_retried_when_the_connection_closes() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await request(reader)

    async with listening(handle) as port:
        outcome = await send_probe(f"http://127.0.0.1:{port}")
    assert (outcome.kind, connections) == (FAILED, 1)


async def test_redirects_are_not_followed() -> None:
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request(reader))
        writer.write(answer(status="302 Found", headers="Location: /elsewhere\r\n"))

    async with listening(handle) as port:
        outcome = await send_probe(f"http://127.0.0.1:{port}")
    assert outcome.error == "HTTP 302"
    assert len(requests) == 1


@pytest.mark.slow
async def test_concurrent_probes_are_not_limited_by_a_connection_pool() -> None:
    async with listening(respond(after=9)) as port, Prober(EgressPolicy()) as prober:
        target_plan = plan(f"http://127.0.0.1:{port}", {"timeout": "0.5s"})
        outcomes = await asyncio.gather(*(prober.send_probe(target_plan) for _ in range(150)))
    assert {outcome.error for outcome in outcomes} == {"no answer within 500 ms"}
    assert max(outcome.response_time for outcome in outcomes) < 2.5
