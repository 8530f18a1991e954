"""Endpoints on loopback for probes: scripted, failing, silent or closed."""

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest

TIMEOUT = 20.0
"""Time limit of waits in seconds."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Handles a connection."""
Target = Callable[[], AbstractAsyncContextManager[int]]
"""Opens an endpoint and yields its port."""
GrpcAnswers = Callable[[bytes, "grpc.aio.ServicerContext[bytes, bytes]"], Awaitable[bytes]]
"""Handles ``Health/Check`` with encoded messages."""


# HTTP and TCP.


def answer(body: bytes = b"", status: str = "200 OK", headers: str = "") -> bytes:
    """Return an HTTP response; ``headers`` are complete lines."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


FINE = answer()
BROKEN = answer(status="500 Internal Server Error")


@asynccontextmanager
async def listening(handler: Handler, *, tls: ssl.SSLContext | None = None, backlog: int = 100) -> AsyncIterator[int]:
    """Run a server on loopback and yield its port. Its connections are closed at the end of the block."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with suppress(asyncio.CancelledError, OSError, EOFError):
            await handler(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, backlog=backlog)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections)


async def request(reader: asyncio.StreamReader) -> bytes:
    """Read the head of a request."""
    return await reader.readuntil(b"\r\n\r\n")


def respond(*parts: bytes, before: float = 0, after: float = 0) -> Handler:
    """Return a handler that responds to any request with ``parts``; ``before`` and ``after`` are delays in seconds."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        await asyncio.sleep(before)
        for part in parts:
            writer.write(part)
            await writer.drain()
        await asyncio.sleep(after)

    return handle


class Agent:
    """An HTTP server with scripted responses, which records requests."""

    def __init__(self) -> None:
        self.port = 0
        self.response = FINE
        """Response when ``script`` is empty."""
        self.script: list[bytes] = []
        """Responses to the next requests."""
        self.connections = 0
        self.requests: list[str] = []
        """Request lines."""
        self.waiting = 0
        self.max_waiting = 0
        self.open = asyncio.Event()
        """Responses are delayed while this event is cleared."""
        self.open.set()

    @property
    def paths(self) -> list[str]:
        """Return the paths of the requests, in order."""
        return [line.split()[1] for line in self.requests]

    def endpoint(self, path: str = "") -> str:
        """Return the URL of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one request; a ``Handler``."""
        self.connections += 1
        head = await request(reader)
        self.requests.append(head.decode().partition("\r\n")[0])
        response = self.script.pop(0) if self.script else self.response
        self.waiting += 1
        self.max_waiting = max(self.waiting, self.max_waiting)
        disconnected = asyncio.ensure_future(reader.read())
        opened = asyncio.ensure_future(self.open.wait())
        try:
            await asyncio.wait((disconnected, opened), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.waiting -= 1
            disconnected.cancel()
            opened.cancel()
        writer.write(response)
        await writer.drain()

    async def wait_for_requests(self, times: int) -> None:
        """Wait until the server has received ``times`` requests."""
        try:
            async with asyncio.timeout(TIMEOUT):
                while len(self.requests) < times:
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pytest.fail(f"the agent received {len(self.requests)} requests instead of {times}")


@asynccontextmanager
async def agents(count: int) -> AsyncIterator[list[Agent]]:
    """Run several agents, each on a separate port."""
    async with AsyncExitStack() as stack:
        made = [Agent() for _ in range(count)]
        for each in made:
            each.port = await stack.enter_async_context(listening(each.serve))
        yield made


# Unreachable endpoints.


@contextmanager
def closed_port() -> Iterator[int]:
    """Yield a port that is closed and that no other process can take."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Yield a port that does not respond: its accept queue is full."""
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


# gRPC.


class _Check(grpc.GenericRpcHandler):
    """Serves ``Health/Check`` with encoded messages."""

    def __init__(self, answers: GrpcAnswers) -> None:
        self._answers = answers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self._answers)
        return None


@asynccontextmanager
async def grpc_server(
    answers: GrpcAnswers | None = None, *, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[int]:
    """Run a gRPC server, with ``grpc.health.v1`` if ``answers`` is given, and yield its port."""
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


def reports(status: int) -> GrpcAnswers:
    """Return a handler that always returns the same status."""

    async def check(_request: bytes, _context: object) -> bytes:
        return bytes((8, status))

    return check


# TLS.


class Certificates(NamedTuple):
    """PEM files named by their defect; ``authority`` is the certificate that a prober trusts."""

    directory: Path

    def pair(self, name: str) -> tuple[Path, Path]:
        """Return the paths of a certificate and its key."""
        return self.directory / f"{name}.pem", self.directory / f"{name}.key"

    @property
    def authority(self) -> bytes:
        """Return the certificate of the authority as PEM."""
        return self.pair("authority")[0].read_bytes()

    def context(self, name: str) -> ssl.SSLContext:
        """Return an SSL context for an asyncio server."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*self.pair(name))
        return context

    def credentials(self, name: str) -> grpc.ServerCredentials:
        """Return credentials for a gRPC server."""
        certificate, key = self.pair(name)
        return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])


def make_certificates(directory: Path) -> Certificates:
    """Create ``self-signed``, ``good``, ``expired`` and ``unknown``. Skips the test without a suitable openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, which is not installed")

    def openssl(*arguments: str) -> None:
        result = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"openssl cannot create the certificates: {result.stderr}")

    def request_for(name: str) -> list[str]:
        return [
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", f"{name}.key", "-subj", f"/CN={name}"),
        ]

    valid_for = "subjectAltName=DNS:localhost,DNS:agent.test,IP:127.0.0.1"
    # From Python 3.13 on, certificates are verified strictly: key usage and key identifiers are required.
    (directory / "names").write_text(f"{valid_for}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
    for name in ("authority", "stranger"):
        usage = ("-addext", "keyUsage=critical,keyCertSign")
        openssl(*request_for(name), "-x509", "-days", "2", *usage, "-out", f"{name}.pem")
    openssl(*request_for("self-signed"), "-x509", "-days", "2", "-addext", valid_for, "-out", "self-signed.pem")
    for name, authority, days in (("good", "authority", 2), ("expired", "authority", -1), ("unknown", "stranger", 2)):
        openssl(*request_for(name), "-out", f"{name}.request")
        openssl(
            *("x509", "-req", "-in", f"{name}.request", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"),
            *("-set_serial", "7", "-days", str(days), "-extfile", "names", "-out", f"{name}.pem"),
        )
    return Certificates(directory)
