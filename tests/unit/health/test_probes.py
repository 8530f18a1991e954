"""Probes against real servers on loopback: what each kind of fault is told as, and what it may cost."""

import asyncio
import errno
import os
import re
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Never

import grpc
import grpc.aio
import pytest
import uvloop
from google.protobuf.json_format import MessageToDict, ParseDict
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from ossa.registry.v1.service_pb2 import Service
from registry_server import __version__
from registry_server.config import HealthCheckSettings
from registry_server.health.network import NetworkPolicy
from registry_server.health.probes import Outcome, OutcomeKind, Plan, Prober
from registry_server.health.probes.outcome import BROKEN, span

OK, DEGRADED, FAILED = OutcomeKind.OK, OutcomeKind.DEGRADED, OutcomeKind.FAILED
INCONCLUSIVE = OutcomeKind.INCONCLUSIVE
LONG = "0.200s"
"""For probes that are to end by their timeout; all others have time enough for a busy machine."""
HANGS = "no answer within 200 ms"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Check = dict[str, Any]


def plan(endpoint: str, check: Check | None = None) -> Plan:
    service = Service(name="a", endpoint=endpoint, version="1.0.0")
    ParseDict(check or {}, service.health_check)
    return Plan.of(service, HealthCheckSettings(timeout_ms=10_000))


async def probe(
    endpoint: str, check: Check | None = None, *, authorities: bytes | None = None, policy: NetworkPolicy | None = None
) -> Outcome:
    async with Prober(policy or NetworkPolicy(), authorities=authorities) as prober:
        return await prober.probe(plan(endpoint, check))


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """The server runs on uvloop where it can; errors come in other forms there."""
    with asyncio.Runner(loop_factory=request.param) as made:
        yield made


# --- servers ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server whose connections end with the block at the latest; gives its port."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(asyncio.CancelledError, OSError, EOFError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections)


async def request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def says(*parts: bytes, before: float = 0, after: float = 0) -> Handler:
    """A server that takes a request and says this, whatever it was; seconds to wait before and after."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        await asyncio.sleep(before)
        for part in parts:
            writer.write(part)
            await writer.drain()
        await asyncio.sleep(after)

    return handle


def answer(body: bytes = b"", status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


async def closes(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await request(reader)


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await request(reader)
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that nobody listens on and nobody else can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port that does not answer: its queue of connections that wait to be accepted is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


# --- HTTP ---------------------------------------------------------------------------------------------------------


class Http(NamedTuple):
    """One row: what a server does, what the probe is told to do, and what must come of it."""

    name: str
    server: Handler
    kind: OutcomeKind
    error: str = ""
    details: Mapping[str, Any] | None = None
    check: Check = {}  # noqa: RUF012 - never changed


CUT_SHORT = "closed the connection before the answer was complete"
NOT_HTTP = "not an HTTP answer"
TOO_LARGE = "the header of the answer is too large"
NESTED = b'{"a":' * 33 + b"1" + b"}" * 33
HTTP = [
    Http("200", says(answer(b"fine")), OK),
    Http("204", says(answer(status="204 No Content")), OK),
    Http("299", says(answer(status="299 Odd")), OK),
    Http("301", says(answer(status="301 Moved", headers="Location: /elsewhere\r\n")), FAILED, "HTTP 301"),
    Http("404", says(answer(status="404 Not Found")), FAILED, "HTTP 404"),
    Http("500", says(answer(status="500 Internal Server Error")), FAILED, "HTTP 500"),
    Http("500 with details", says(answer(b'{"db":"down"}', "500 Oops")), FAILED, "HTTP 500", {"db": "down"}),
    Http("500 with half a body", says(b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\n{"), FAILED, "HTTP 500"),
    Http(
        "500 with a body that never ends",
        says(b"HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\n{", after=9),
        FAILED,
        "HTTP 500",
        check={"timeout": LONG},
    ),
    Http("an interim answer first", says(b"HTTP/1.1 100 Continue\r\n\r\n", answer(b"fine")), OK),
    Http("a body up to the end of the connection", says(b'HTTP/1.0 200 OK\r\n\r\n{"a":true}'), OK, "", {"a": True}),
    Http(
        "a body in chunks",
        says(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{"a\r\n', b'6\r\n":"b"}\r\n0\r\n\r\n'),
        OK,
        "",
        {"a": "b"},
    ),
    # Expectations
    Http("503 expected", says(answer(status="503 Busy")), OK, check={"http": {"expectedStatuses": [503]}}),
    Http("200 not expected", says(answer()), FAILED, "HTTP 200", check={"http": {"expectedStatuses": [204, 301]}}),
    Http(
        "301 expected",
        says(answer(status="301 Moved", headers="Location: http://127.0.0.1:1/\r\n")),
        OK,
        check={"http": {"expectedStatuses": [204, 301]}},
    ),
    Http(
        "101 expected",
        says(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n", after=9),
        OK,
        check={"http": {"expectedStatuses": [101]}},
    ),
    Http(
        "HEAD", says(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", after=9), OK, check={"http": {"method": "HEAD"}}
    ),
    # Slowness
    Http("slow", says(answer(), before=0.06), DEGRADED, "slower than 30 ms", check={"degradedAfter": "0.030s"}),
    Http("not slow", says(answer()), OK, check={"degradedAfter": "5s"}),
    Http(
        "slow and failing",
        says(answer(status="500 Oops"), before=0.06),
        FAILED,
        "HTTP 500",
        check={"degradedAfter": "0.030s"},
    ),
    Http("silent", says(after=9), FAILED, HANGS, check={"timeout": LONG}),
    Http("silent in the header", says(b"HTTP/1.1 200 OK\r\n", after=9), FAILED, HANGS, check={"timeout": LONG}),
    Http(
        "silent in the body",
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", after=9),
        FAILED,
        HANGS,
        check={"timeout": LONG},
    ),
    # Connections that break
    Http("closes", closes, FAILED, "closed the connection without an answer"),
    Http("resets", resets, FAILED, "connection reset"),
    Http("closes in the status line", says(b"HTTP/1.1 2"), FAILED, CUT_SHORT),
    Http("closes in the header", says(b"HTTP/1.1 200 OK\r\nContent-Le"), FAILED, CUT_SHORT),
    Http("closes in the body", says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"), FAILED, CUT_SHORT),
    Http(
        "closes in a chunk",
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"),
        FAILED,
        CUT_SHORT,
    ),
    # Nonsense
    Http("garbage", says(b"\x00\x01\x02\xff\r\n\r\n"), FAILED, NOT_HTTP),
    Http("another protocol", says(b"220 mail.test ESMTP\r\n"), FAILED, NOT_HTTP),
    Http(
        "bad chunks",
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n"),
        FAILED,
        NOT_HTTP,
    ),
    Http("two lengths", says(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), FAILED, NOT_HTTP),
    Http("a header line of 20 KB", says(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"), FAILED, TOO_LARGE),
    Http("a reason of 20 KB", says(b"HTTP/1.1 200 " + b"a" * 20_000 + b"\r\n\r\n"), FAILED, TOO_LARGE),
    Http("1,000 header lines", says(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1_000 + b"\r\n"), FAILED, TOO_LARGE),
    # Details
    Http(
        "JSON",
        says(answer(b'{"status":"healthy","version":"1.0.0","queue":{"depth":3,"full":false},"tags":["a",null]}')),
        OK,
        "",
        {"status": "healthy", "version": "1.0.0", "queue": {"depth": 3, "full": False}, "tags": ["a", None]},
    ),
    Http("JSON with space around", says(answer(b' \r\n{"a": 1}\n')), OK, "", {"a": 1}),
    Http("an empty object", says(answer(b"{}")), OK, "", {}),
    Http(
        "JSON that says degraded",
        says(answer(b'{"status":"Degraded","queue":900}')),
        DEGRADED,
        "the service reports that it is degraded",
        {"status": "Degraded", "queue": 900},
    ),
    Http(
        "JSON that says degraded, with details that are too deep",
        says(answer(b'{"status":"degraded","more":' + NESTED + b"}")),
        DEGRADED,
        "the service reports that it is degraded",
    ),
    Http(
        "500 that says degraded",
        says(answer(b'{"status":"degraded"}', "500 Oops")),
        FAILED,
        "HTTP 500",
        {"status": "degraded"},
    ),
    Http("a status that is no text", says(answer(b'{"status":["degraded"]}')), OK, "", {"status": ["degraded"]}),
    Http("no object", says(answer(b'["degraded"]')), OK),
    Http("text", says(answer(b"OK")), OK),
    Http("half an object", says(answer(b'{"status":"degraded"')), OK),
    Http("two objects", says(answer(b"{}{}")), OK),
    Http("NaN", says(answer(b'{"a":NaN}')), OK),
    Http("Infinity", says(answer(b'{"a":-Infinity}')), OK),
    Http("a number that is too large", says(answer(b'{"a":1e999}')), OK),
    Http("half of a surrogate pair", says(answer(b'{"a":"\\ud800"}')), OK),
    Http("not UTF-8", says(answer(b'{"a":"\xff"}')), OK),
    Http("too deep", says(answer(NESTED)), OK),
    Http("deeper than a parser goes", says(answer(b'{"a":' + b"[" * 4_000)), OK),
    Http("compressed", says(answer(b"\x1f\x8b\x08{}", headers="Content-Encoding: gzip\r\n")), OK),
    Http("4,000 bytes", says(answer(b'{"a":"%s"}' % (b"x" * 3_992))), OK, "", {"a": "x" * 3_992}),
    Http("4,097 bytes", says(answer(b'{"a":"%s"}' % (b"x" * 4_089))), OK),
    Http("4,000 bytes that are more as details", says(answer(b'{"a":[%s1]}' % (b"1," * 1_900))), OK),
]


@pytest.mark.parametrize("row", HTTP, ids=[row.name for row in HTTP])
def test_http(row: Http, runner: asyncio.Runner) -> None:
    async def run() -> Outcome:
        async with listening(row.server) as port:
            return await probe(f"http://127.0.0.1:{port}", row.check)

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error) == (row.kind, row.error)
    assert (None if outcome.details is None else MessageToDict(outcome.details)) == row.details
    assert 0 < outcome.response_time < 5


async def sent_to(
    handler: Callable[[bytes, asyncio.StreamWriter], None], check: Check, *, path: str = ""
) -> list[bytes]:
    """What two probes send to a server."""
    requests: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await request(reader))
        handler(requests[-1], writer)

    async with listening(handle) as port, Prober(NetworkPolicy()) as prober:
        for _ in range(2):
            outcome = await prober.probe(plan(f"http://127.0.0.1:{port}{path}", check))
            assert outcome.kind is OK, outcome
    return [sent.replace(f":{port}".encode(), b":PORT") for sent in requests]


def fine(_: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(headers="Set-Cookie: session=1; Path=/\r\n"))


async def test_by_default_it_is_get_health_with_nothing_but_the_usual_headers_and_no_cookies() -> None:
    expected = (
        b"GET /base/health HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nUser-Agent: ossa-registry/%s\r\n"
        b"Accept-Encoding: identity\r\nConnection: close\r\nAccept: */*\r\n\r\n" % __version__.encode()
    )
    assert await sent_to(fine, {}, path="/base/?debug=1#top") == [expected, expected]


async def test_method_path_and_headers_are_those_of_the_check() -> None:
    headers = {"X-Token": "secret", "Host": "agent.test", "user-agent": "mine", "Accept": "application/json"}
    check = {"http": {"method": "POST", "path": "/a%7Eb/../ready?x=%20y", "headers": headers}}
    sent, _ = await sent_to(fine, check)
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
async def test_headers_that_make_no_sense_cost_one_probe_at_most(name: str, value: str) -> None:
    async with listening(says(answer())) as port:
        check = {"http": {"method": "POST", "headers": {name: value}}, "timeout": LONG}
        assert (await probe(f"http://127.0.0.1:{port}", check)).error in {"", HANGS}


def test_a_large_body_costs_no_more_than_its_beginning(runner: asyncio.Runner) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        async with listening(pour) as port:
            outcome = await probe(f"http://127.0.0.1:{port}")
            await asyncio.sleep(0.05)  # for what it would still get rid of
            return outcome

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error, outcome.details) == (OK, "", None)
    # The body's 4 KiB and what the buffers of both kernels hold.
    assert sent < 100_000


async def test_a_request_whose_connection_breaks_is_not_sent_again() -> None:
    count = 0

    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await request(reader)

    async with listening(handle) as port:
        outcome = await probe(f"http://127.0.0.1:{port}")
    assert (outcome.kind, count) == (FAILED, 1)


async def test_redirects_are_not_followed() -> None:
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await request(reader))
        writer.write(answer(status="302 Found", headers="Location: /elsewhere\r\n"))

    async with listening(handle) as port:
        outcome = await probe(f"http://127.0.0.1:{port}")
    assert outcome.error == "HTTP 302"
    assert len(asked) == 1


async def test_more_probes_than_a_pool_would_hold_run_at_once() -> None:
    async with listening(says(after=9)) as port, Prober(NetworkPolicy()) as prober:
        one = plan(f"http://127.0.0.1:{port}", {"timeout": "0.5s"})
        outcomes = await asyncio.gather(*(prober.probe(one) for _ in range(150)))
    assert {outcome.error for outcome in outcomes} == {"no answer within 500 ms"}
    assert max(outcome.response_time for outcome in outcomes) < 2.5


# --- TLS ----------------------------------------------------------------------------------------------------------


class Certificates(NamedTuple):
    """PEM files by what is wrong with them; ``authority`` is what the prober trusts."""

    directory: Path

    def pair(self, name: str) -> tuple[Path, Path]:
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    @property
    def authority(self) -> bytes:
        return self.pair("authority")[0].read_bytes()

    def context(self, name: str) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.pair(name))
        return context

    def credentials(self, name: str) -> grpc.ServerCredentials:
        certificate, key = self.pair(name)
        return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificates with openssl, which is not installed")
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this openssl does not make the certificates: {done.stderr}")

    def request_for(name: str) -> list[str]:
        return [
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", f"{name}.key", "-subj", f"/CN={name}"),
        ]

    valid_for = "subjectAltName=DNS:localhost,DNS:agent.test,IP:127.0.0.1"
    (directory / "names").write_text(valid_for)
    for name in ("authority", "stranger"):
        openssl(*request_for(name), "-x509", "-days", "2", "-out", f"{name}.pem")
    openssl(*request_for("self-signed"), "-x509", "-days", "2", "-addext", valid_for, "-out", "self-signed.pem")
    for name, authority, days in (("good", "authority", 2), ("expired", "authority", -1), ("unknown", "stranger", 2)):
        openssl(*request_for(name), "-out", f"{name}.request")
        openssl(
            *("x509", "-req", "-in", f"{name}.request", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
            *("-set_serial", "7", "-days", str(days), "-extfile", "names", "-out", f"{name}.pem"),
        )
    return Certificates(directory)


TLS = [
    ("good", "127.0.0.1", OK, ""),
    ("good", "agent.test", OK, ""),
    ("good", "other.test", FAILED, "TLS: certificate is not valid for this host name"),
    ("self-signed", "127.0.0.1", FAILED, "TLS: certificate is not trusted (self-signed certificate)"),
    ("unknown", "127.0.0.1", FAILED, "TLS: certificate is not trusted (unknown issuer)"),
    ("expired", "127.0.0.1", FAILED, "TLS: certificate has expired"),
]


@pytest.mark.parametrize(("certificate", "host", "kind", "error"), TLS)
async def test_https_is_verified_against_the_host_name(
    certificate: str,
    host: str,
    kind: OutcomeKind,
    error: str,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names(monkeypatch, {"agent.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    async with listening(says(answer()), tls=certificates.context(certificate)) as port:
        outcome = await probe(f"https://{host}:{port}", authorities=certificates.authority)
    assert (outcome.kind, outcome.error) == (kind, error)


@pytest.mark.parametrize(("certificate", "host", "kind", "error"), TLS)
async def test_grpcs_is_verified_against_the_host_name(
    certificate: str,
    host: str,
    kind: OutcomeKind,
    error: str,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names(monkeypatch, {"agent.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]})
    async with grpc_server(serving, credentials=certificates.credentials(certificate)) as port:
        outcome = await probe(f"grpcs://{host}:{port}", authorities=certificates.authority)
    assert (outcome.kind, outcome.error) == (kind, error)


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_the_authorities_of_the_system_are_trusted_and_no_others(
    scheme: str, certificates: Certificates, runner: asyncio.Runner
) -> None:
    async def run() -> Outcome:
        async with listening(says(answer()), tls=certificates.context("self-signed")) as port:
            return await probe(f"{scheme}://127.0.0.1:{port}")

    outcome = runner.run(run())
    assert outcome.error == "TLS: certificate is not trusted (self-signed certificate)"


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_server_without_tls_is_told_as_that(scheme: str, runner: asyncio.Runner) -> None:
    async def bad_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer(status="400 Bad Request"))

    async def run() -> Outcome:
        async with listening(bad_request) as port:
            return await probe(f"{scheme}://127.0.0.1:{port}")

    assert runner.run(run()).error == "TLS: the server does not speak TLS"


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_handshake_that_hangs_ends_in_time(scheme: str, runner: asyncio.Runner) -> None:
    async def run() -> Outcome:
        async with listening(says(after=9)) as port:
            return await probe(f"{scheme}://127.0.0.1:{port}", {"timeout": LONG})

    assert runner.run(run()).error == HANGS


# --- gRPC ---------------------------------------------------------------------------------------------------------

Answers = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]


class _Check(grpc.GenericRpcHandler):
    """``Health/Check`` in raw bytes."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self._answers)
        return None


@asynccontextmanager
async def grpc_server(
    answers: Answers | None = None, *, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if answers is not None:
        server.add_generic_rpc_handlers([_Check(answers)])
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


def reports(status: int) -> Answers:
    async def check(_request: bytes, _context: object) -> bytes:
        return bytes((8, status))

    return check


def aborts(code: grpc.StatusCode) -> Answers:
    async def check(_request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        await context.abort(code, "Connection refused by <_SecretObject at 0x7f00>")

    return check


async def junk(_request: bytes, _context: object) -> bytes:
    return b"\xff\xff\xff"


async def silent(_request: bytes, _context: object) -> bytes:
    await asyncio.sleep(9)
    return b""


async def large(_request: bytes, _context: object) -> bytes:
    return b"\x12" + b"\x00" * 10_000_000


serving = reports(HealthCheckResponse.SERVING)
Target = Callable[[], AbstractAsyncContextManager[int]]
NO_HEALTH = "the server does not offer grpc.health.v1"
UNKNOWN = "the server does not know the gRPC service that is asked for"
NOT_GRPC = "not a gRPC answer"
LOST = "closed the connection without an answer"
GRPC: Sequence[tuple[str, Target, OutcomeKind, str]] = [
    ("SERVING", partial(grpc_server, serving), OK, ""),
    ("NOT_SERVING", partial(grpc_server, reports(2)), FAILED, "the service reports NOT_SERVING"),
    ("UNKNOWN", partial(grpc_server, reports(0)), FAILED, "the service reports UNKNOWN"),
    ("SERVICE_UNKNOWN", partial(grpc_server, reports(3)), FAILED, UNKNOWN),
    ("a status of the future", partial(grpc_server, reports(77)), FAILED, NOT_GRPC),
    ("NOT_FOUND", partial(grpc_server, aborts(grpc.StatusCode.NOT_FOUND)), FAILED, UNKNOWN),
    ("UNIMPLEMENTED", grpc_server, FAILED, NO_HEALTH),
    ("UNAVAILABLE", partial(grpc_server, aborts(grpc.StatusCode.UNAVAILABLE)), FAILED, "gRPC UNAVAILABLE"),
    ("CANCELLED", partial(grpc_server, aborts(grpc.StatusCode.CANCELLED)), FAILED, "gRPC CANCELLED"),
    ("DENIED", partial(grpc_server, aborts(grpc.StatusCode.PERMISSION_DENIED)), FAILED, "gRPC PERMISSION_DENIED"),
    ("junk", partial(grpc_server, junk), FAILED, NOT_GRPC),
    ("10 MB", partial(grpc_server, large), FAILED, "gRPC RESOURCE_EXHAUSTED"),
    ("silent", partial(grpc_server, silent), FAILED, HANGS),
    ("silent before HTTP/2", partial(listening, says(after=9)), FAILED, HANGS),
    ("HTTP/1.1", partial(listening, says(answer(status="400 Bad Request"))), FAILED, NOT_GRPC),
    ("garbage", partial(listening, says(b"\x00\x01\x02" * 99)), FAILED, NOT_GRPC),
    ("closes", partial(listening, closes), FAILED, LOST),
    ("resets", partial(listening, resets), FAILED, LOST),
]


@pytest.mark.parametrize(("target", "kind", "error"), [row[1:] for row in GRPC], ids=[row[0] for row in GRPC])
async def test_grpc(target: Target, kind: OutcomeKind, error: str) -> None:
    async with target() as port:
        outcome = await probe(f"grpc://127.0.0.1:{port}", {"timeout": LONG} if error == HANGS else {})
    assert (outcome.kind, outcome.error, outcome.details) == (kind, error, None)
    assert 0 < outcome.response_time < 5


async def test_grpc_asks_the_standard_servicer_for_the_service_of_the_check() -> None:
    servicer = health.aio.HealthServicer()
    await servicer.set("acme.v1.Chat", HealthCheckResponse.NOT_SERVING)
    server = grpc.aio.server()
    add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        endpoint = f"grpc://127.0.0.1:{port}"
        assert (await probe(endpoint)).kind is OK
        outcome = await probe(endpoint, {"grpc": {"service": "acme.v1.Chat"}})
        assert outcome.error == "the service reports NOT_SERVING"
        assert (await probe(endpoint, {"grpc": {"service": "acme.v1.Gone"}})).error == UNKNOWN
    finally:
        await server.stop(0)


async def test_grpc_sends_user_agent_deadline_and_service(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    seen: dict[str, object] = {}

    async def check(sent: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        metadata = dict(context.invocation_metadata() or ())
        seen["agent"] = str(metadata["user-agent"]).partition(" ")[0]
        seen["left"] = context.time_remaining()
        seen["service"] = HealthCheckRequest.FromString(sent).service
        seen["peer"] = context.peer()
        return bytes((8, 1))

    async with grpc_server(check) as port:
        check_chat = {"grpc": {"service": "acme.v1.Chat"}, "timeout": "3s"}
        for _ in range(2):
            assert (await probe(f"grpc://agent.test:{port}", check_chat)).kind is OK
            left = seen.pop("left")
            assert isinstance(left, float)
            assert 0 < left < 3.5  # gRPC rounds it up a little
            assert seen.pop("peer") not in seen.values()
    assert seen == {"agent": f"ossa-registry/{__version__}", "service": "acme.v1.Chat"}


async def test_grpc_names_the_host_as_the_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    sent = b""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")  # SETTINGS: now requests may come
        while b"agent.test" not in sent:
            sent += await reader.read(4_096)

    async with listening(handle) as port:
        await probe(f"grpc://agent.test:{port}")
    assert f"agent.test:{port}".encode() in sent
    assert b"127.0.0.1" not in sent


async def test_each_grpc_probe_has_a_connection_of_its_own() -> None:
    """So a server that is back up is seen at once: no connection, and no back-off of one, is left from before."""
    peers: set[str] = set()

    async def check(_: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        peers.add(context.peer())
        return bytes((8, 1))

    async with Prober(NetworkPolicy()) as prober:
        with closed_port() as port:
            one = plan(f"grpc://127.0.0.1:{port}")
            assert [(await prober.probe(one)).error for _ in range(3)] == ["connection refused"] * 3
        async with grpc_server(check) as port:
            one = plan(f"grpc://127.0.0.1:{port}")
            assert [(await prober.probe(one)).kind for _ in range(3)] == [OK] * 3
    assert len(peers) == 3


# --- TCP, and connecting in general -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["tcp", "ws", "wss"])
def test_tcp_connects_and_closes(scheme: str, runner: asyncio.Runner) -> None:
    got: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        got.append(await reader.read())

    async def run() -> Outcome:
        async with listening(handle) as port:
            outcome = await probe(f"{scheme}://127.0.0.1:{port}")
            while not got:
                await asyncio.sleep(0.01)
            return outcome

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error, outcome.details) == (OK, "", None)
    assert got == [b""]


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp"])
def test_a_closed_port_refuses(scheme: str, runner: asyncio.Runner) -> None:
    with closed_port() as port:
        outcome = runner.run(probe(f"{scheme}://127.0.0.1:{port}"))
    assert (outcome.kind, outcome.error) == (FAILED, "connection refused")


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp"])
def test_a_black_hole_costs_the_timeout(scheme: str, runner: asyncio.Runner) -> None:
    with black_hole() as port:
        outcome = runner.run(probe(f"{scheme}://127.0.0.1:{port}", {"timeout": LONG}))
    assert (outcome.kind, outcome.error) == (FAILED, HANGS)
    assert 0.15 < outcome.response_time < 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01, "10 ms"), (0.0255, "25.5 ms"), (0.2, "200 ms"), (1, "1 s"), (2.5, "2.5 s"), (300, "300 s")],
)
def test_times_are_told_in_a_unit_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize("scheme", ["http", "grpc", "tcp"])
@pytest.mark.parametrize("first", ["::1", "127.0.0.2"], ids=["refuses", "does not answer"])
def test_a_name_is_probed_at_its_next_address_if_the_first_is_dead(
    scheme: str, first: str, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> Outcome:
        names(monkeypatch, {"agent.test": [first, "127.0.0.1"]})
        target = grpc_server(serving) if scheme == "grpc" else listening(says(answer()))
        async with target as port:
            with ExitStack() as stack:
                if first == "127.0.0.2":
                    try:
                        stack.enter_context(black_hole(first, port))
                    except OSError:
                        pytest.skip("this system has one loopback address only")
                return await probe(f"{scheme}://agent.test:{port}", {"timeout": "1s"})

    outcome = runner.run(run())
    assert (outcome.kind, outcome.error) == (OK, "")


# --- names and what may not be reached ----------------------------------------------------------------------------


def names(monkeypatch: pytest.MonkeyPatch, known: Mapping[str, Sequence[str] | Exception]) -> list[str]:
    """Names that are resolved in the place of the system's; gives those it was asked for."""
    asked: list[str] = []

    def look_up(host: str, port: int, *_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        addresses: Sequence[str] | Exception = [host]  # uvloop looks up addresses too, before it connects to them
        if host in known:
            asked.append(host)
            addresses = known[host]
        if isinstance(addresses, Exception):
            raise addresses
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


SCHEMES = pytest.mark.parametrize("scheme", ["http", "https", "grpc", "grpcs", "tcp", "ws"])


@SCHEMES
@pytest.mark.parametrize("host", ["169.254.169.254", "0.0.0.0", "[::]", "[fe80::1]", "[::ffff:a9fe:a9fe]"])
async def test_a_denied_address_is_not_connected_to(scheme: str, host: str) -> None:
    outcome = await probe(f"{scheme}://{host}:80")
    assert (outcome.kind, outcome.error) == (FAILED, f"address {host.strip('[]')} is not allowed")
    assert outcome.response_time < 1


@SCHEMES
async def test_a_name_of_a_denied_address_is_not_connected_to(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names(monkeypatch, {"agent.test": ["169.254.169.254", "fe80::1"]})
    outcome = await probe(f"{scheme}://agent.test:80")
    assert (outcome.kind, outcome.error) == (FAILED, "host name has no address that is allowed")


@SCHEMES
async def test_a_name_is_looked_up_once_and_the_answer_is_what_is_connected_to(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a second answer could lead elsewhere (DNS rebinding)."""
    asked = names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    with closed_port() as port:
        outcome = await probe(f"{scheme}://agent.test:{port}")
    assert outcome.error == "connection refused"
    assert asked == ["agent.test"]


@SCHEMES
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "host name not found"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "host name could not be resolved"),
    ],
)
async def test_a_name_that_cannot_be_resolved(
    scheme: str, fault: Exception, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, {"agent.test": fault})
    outcome = await probe(f"{scheme}://agent.test:80")
    assert (outcome.kind, outcome.error) == (FAILED, text)


@contextmanager
def hanging_dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Look-ups that give no answer before the block ends; gives the names that were asked for."""
    asked: list[str] = []
    ended = threading.Event()

    def hang(host: str, *_: object, **__: object) -> Never:
        asked.append(host)
        ended.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        yield asked
    finally:
        ended.set()  # the interpreter waits for the threads


@SCHEMES
async def test_dns_that_hangs_ends_in_time(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_dns(monkeypatch) as asked:
        outcome = await probe(f"{scheme}://agent.test:80", {"timeout": "0.05s"})
    assert (outcome.kind, outcome.error) == (FAILED, "no answer within 50 ms")
    assert asked == ["agent.test"]


async def test_names_whose_dns_hangs_keep_neither_addresses_nor_the_threads_of_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with hanging_dns(monkeypatch):
        async with Prober(NetworkPolicy()) as prober, listening(says(answer())) as port:
            hanging = [
                asyncio.create_task(prober.probe(plan(f"http://agent-{i}.test:80", {"timeout": "5s"})))
                for i in range(100)
            ]
            await asyncio.sleep(0)
            assert (await prober.probe(plan(f"http://127.0.0.1:{port}"))).kind is OK
            assert await asyncio.to_thread(int, "7") == 7
            assert not any(task.done() for task in hanging)
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)


async def test_a_prober_closes_at_once_though_dns_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with hanging_dns(monkeypatch) as asked:
        async with asyncio.timeout(5), Prober(NetworkPolicy()) as prober:
            hanging = asyncio.create_task(prober.probe(plan("tcp://agent.test:80", {"timeout": "0.05s"})))
            assert (await hanging).error == "no answer within 50 ms"
    assert asked == ["agent.test"]


@SCHEMES
@pytest.mark.parametrize("endpoint", ["", "://", "://:80", "://127.0.0.1:http"])
async def test_an_endpoint_that_cannot_be_read_fails(scheme: str, endpoint: str) -> None:
    outcome = await probe(scheme + endpoint)
    assert (outcome.kind, outcome.error) == (FAILED, "the endpoint is not a URL with a host")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_proxies_of_the_environment_are_not_used(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as dead:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{dead}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        target = grpc_server(serving) if scheme == "grpc" else listening(says(answer()))
        async with target as port:
            assert (await probe(f"{scheme}://127.0.0.1:{port}")).kind is OK


# --- the prober itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "tcp"])
def test_a_probe_that_is_cancelled_says_so_and_hurts_no_other(scheme: str, runner: asyncio.Runner) -> None:
    async def run() -> Outcome:
        async with Prober(NetworkPolicy()) as prober:
            with black_hole() as port:
                probing = asyncio.create_task(prober.probe(plan(f"{scheme}://127.0.0.1:{port}")))
                await asyncio.sleep(0.05)
                probing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await probing
            async with listening(says(answer())) as port:
                return await prober.probe(plan(f"http://127.0.0.1:{port}"))

    assert runner.run(run()).kind is OK


@pytest.mark.parametrize("kind", ["heartbeat", "none"])
async def test_what_is_not_probed_and_what_breaks_within_is_no_failure_and_no_exception(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Prober(NetworkPolicy()) as prober:
        one = plan("http://127.0.0.1:1", {kind: {}})._replace(host="127.0.0.1")
        outcome = await prober.probe(one)
    assert (outcome.kind, outcome.error) == (INCONCLUSIVE, "the probe failed within the registry")
    assert "probe broke" in "".join(capsys.readouterr())


async def test_a_prober_that_was_not_started_proves_nothing_and_raises_nothing() -> None:
    prober = Prober(NetworkPolicy())
    await prober.close()
    outcome = await prober.probe(plan("http://127.0.0.1:1"))
    assert (outcome.kind, outcome.error) == (INCONCLUSIVE, BROKEN)


@pytest.mark.parametrize("scheme", ["http", "grpc", "tcp"])
async def test_a_prober_that_is_closed_looks_up_no_name(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, {"agent.test": ["127.0.0.1"]})
    async with Prober(NetworkPolicy()) as prober:
        pass
    assert (await prober.probe(plan(f"{scheme}://agent.test:80"))).kind is INCONCLUSIVE
    assert asked == []


# --- what is the registry's own fault -----------------------------------------------------------------------------


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process cannot open any file more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as opened:
        lowest = opened.fileno()  # of those that are free
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("scheme", ["http", "https", "grpc", "tcp"])
def test_too_many_open_files_prove_nothing_and_pass(scheme: str, runner: asyncio.Runner) -> None:
    async def run() -> tuple[Outcome, Outcome]:
        target = grpc_server(serving) if scheme == "grpc" else listening(says(answer()))
        async with target as port, Prober(NetworkPolicy()) as prober:
            one = plan(f"{scheme.removesuffix('s')}://127.0.0.1:{port}", {"timeout": "5s"})
            with no_more_files():
                without = await prober.probe(one._replace(tls=scheme == "https"))
            return without, await prober.probe(one)

    without, then = runner.run(run())
    assert (without.kind, without.error) == (INCONCLUSIVE, "the registry has too many open files")
    assert then.kind is OK


@pytest.mark.parametrize("scheme", ["http", "https", "tcp"])
@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.EADDRNOTAVAIL, INCONCLUSIVE, "the registry has no local address or port to connect from"),
        (errno.ENFILE, INCONCLUSIVE, "the registry has too many open files"),
        (errno.EHOSTUNREACH, FAILED, "host unreachable"),
        (errno.ENETUNREACH, FAILED, "network unreachable"),
        (errno.ETIMEDOUT, FAILED, "connection timed out"),
        (errno.EPERM, FAILED, "connection not permitted by the registry's host"),
        (errno.EIO, FAILED, "connection failed"),
    ],
)
async def test_faults_that_no_server_makes_are_told_apart_by_whose_they_are(
    scheme: str, number: int, kind: OutcomeKind, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> Never:
        raise OSError(number, os.strerror(number))

    async with Prober(NetworkPolicy()) as prober:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", fail)
        outcome = await prober.probe(plan(f"{scheme}://127.0.0.1:80"))
    assert (outcome.kind, outcome.error) == (kind, text)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("Too many open files", "the registry has too many open files"),
        ("Cannot assign requested address", "the registry has no local address or port to connect from"),
        ("No route to host", "host unreachable"),
        ("Network is unreachable", "network unreachable"),
        ("something new", "connection failed"),
    ],
)
async def test_the_same_of_grpc_is_told_by_its_words(words: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the words come from the peer, they prove nothing."""

    async def probe_with(details: str) -> Outcome:
        error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details)

        async def fail(*_: object) -> Never:
            raise error

        async with Prober(NetworkPolicy()) as prober:
            monkeypatch.setattr(NetworkPolicy, "resolve", fail)
            return await prober.probe(plan("grpc://127.0.0.1:80"))

    outcome = await probe_with(f"failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:80: {words}")
    assert outcome.error == text
    assert outcome.kind is (INCONCLUSIVE if text.startswith("the registry") else FAILED)
    outcome = await probe_with(words)
    assert (outcome.kind, outcome.error) == (FAILED, "gRPC UNAVAILABLE")


def test_no_text_shows_the_inside_of_the_program() -> None:
    texts = {row.error for row in HTTP} | {row[3] for row in GRPC} | {row[3] for row in TLS}
    for text in texts:
        assert not re.search(r"0x|Error|Exception|errno|Errno|[a-z]_[a-z]|127\.0", text), text
        assert len(text) <= 100
