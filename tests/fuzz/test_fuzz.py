"""For any input, the server survives, never returns INTERNAL, logs no error, never stalls, and does not leak memory.

``make test`` sends 1,000 requests per test, ``make fuzz`` sends 50,000.
"""

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import hpack
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from tests.fuzz.requests import END_HEADERS, HEADERS, METHODS, UNARY, connection, corrupt, requests, valid_requests
from tests.support.floods import document_floods, floods
from tests.support.security import Policy, bearer
from tests.support.server import ServerProcess

COUNT = int(os.environ.get("OSSA_FUZZ", "1000"))
"""Number of requests per test."""
JSON = {"Content-Type": "application/json"}
IN_FLIGHT = 32
RECOVERY_SECONDS = 30.0
CALL_TIMEOUT_SECONDS = 1.0
"""Deadline of a call; some calls wait for a revision that is never reached."""
STREAM_SECONDS = 0.05
MAX_GROWTH_BYTES = 48 << 20
"""Permitted memory growth after a tenth of the requests, for pools and arenas."""
GRPC_CORE_MESSAGES = ("Failed parsing HTTP/2", "Compression bit set but no encoding configured")
"""Messages of INTERNAL errors that gRPC's core returns by specification; the registry never sees these calls."""
BUG_CODES = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


class Target:
    """A server process and its responses."""

    def __init__(self, server: ServerProcess, policy: Policy) -> None:
        self.server, self.policy = server, policy
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.bugs: list[str] = []
        self._baseline = 0
        self.warmed = False

    @property
    def memory(self) -> int:
        """Return the resident memory of the process in bytes."""
        text = Path(f"/proc/{self.server.pid}/status").read_text(encoding="ascii")
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024

    def record_response(self, method: str, wire: bytes, code: grpc.StatusCode) -> None:
        """Record a response."""
        self.codes[code] += 1
        if code in BUG_CODES and len(self.bugs) < 10:
            self.bugs.append(f"{method} {code.name} {wire[:200]!r}")

    def warm(self) -> None:
        """Record the memory after the warm-up as the baseline."""
        self._baseline, self.warmed = self.memory, True

    async def check(self) -> None:
        """Fail if there was a bug, an error in the log, or a memory leak."""
        async with grpc.aio.insecure_channel(self.server.grpc_address) as channel:
            stub = RegistryServiceStub(channel)
            admin = self.policy.metadata("admin")
            request = pb.DiscoverServicesRequest(page_size=1000)
            answer = await stub.DiscoverServices(request, metadata=admin, timeout=RECOVERY_SECONDS, wait_for_ready=True)
            for service in answer.services:
                await stub.UnregisterService(pb.UnregisterServiceRequest(name=service.name), metadata=admin)
        await self.check_resources("all requests")

    async def check_resources(self, family: str) -> None:
        """Fail if there was a bug, an error or a stall of the event loop in the log, or a memory leak."""
        assert self.bugs == []
        assert [line for line in self.server.log if line.get("level") in {"error", "critical"}] == []
        assert [line for line in self.server.log if line.get("event") == "event loop stalled"] == []
        deadline = time.monotonic() + RECOVERY_SECONDS
        limit = self._baseline + MAX_GROWTH_BYTES
        while self.warmed and self.memory > limit and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        memory = self.memory
        print(family, {code.name: count for code, count in self.codes.items()}, f"{memory >> 20} MiB")
        assert not self.warmed or memory <= limit


@asynccontextmanager
async def target(directory: Path) -> AsyncIterator[Target]:
    policy = Policy(directory)
    # pytest's directory can have a path that is too long for the socket of the embedded Redis.
    with tempfile.TemporaryDirectory(prefix="ossa-") as data:
        async with ServerProcess(f"--data-dir={data}", f"--security.policy-file={policy.file}") as server:
            yield Target(server, policy)
            os.kill(server.pid, 0)  # fails if the process has exited


def credential(policy: Policy, dice: random.Random) -> str:
    """Return a credential, which is valid in most cases."""
    if dice.random() < 0.95:
        return policy.keys["admin"]
    return dice.choice((policy.keys["viewer"], "", "ossa_x", "a.b.c", "x" * 5000, "é"))


async def call(channel: grpc.aio.Channel, at: Target, method: str, wire: bytes, token: str) -> None:
    """Call a method with arbitrary bytes as the request."""
    metadata = bearer(token) if token.isascii() else ()
    if method in UNARY:
        unary: Any = channel.unary_unary(method)
        at.record_response(method, wire, await unary(wire, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS).code())
        return
    made: Any = channel.stream_stream(method)
    stream = made(metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await stream.write(wire)
        await stream.done_writing()
        with suppress(TimeoutError):
            async with asyncio.timeout(STREAM_SECONDS):
                while await stream.read() is not grpc.aio.EOF:
                    pass
    stream.cancel()
    at.record_response(method, wire, await stream.code())


async def in_parallel(count: int, one: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Run ``one`` for ``count`` numbers, several concurrently."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())


@pytest.mark.timeout(1800)
async def test_corrupted_messages(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    wires = valid_requests()
    async with target(tmp_path) as at, grpc.aio.insecure_channel(at.server.grpc_address) as channel:

        async def one(number: int) -> None:
            # Streams take longer, so only every twentieth call is one.
            method = dice.choice(list(METHODS if number % 20 == 0 else UNARY))
            await call(channel, at, method, corrupt(wires[method], dice), credential(at.policy, dice))

        await in_parallel(COUNT // 20, one)
        at.warm()
        await in_parallel(COUNT // 2 - COUNT // 20, one)
        await at.check()
        assert at.codes[grpc.StatusCode.INVALID_ARGUMENT] > COUNT // 20


@pytest.mark.timeout(1800)
async def test_malformed_http2(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    wires = valid_requests()
    async with target(tmp_path) as at:
        host, _, port = at.server.grpc_address.rpartition(":")

        async def one(_: int) -> None:
            method = dice.choice(list(METHODS))
            wire = wires[method] if dice.random() < 0.5 else corrupt(wires[method], dice)
            sent = connection(method, wire, credential(at.policy, dice), dice)
            for code in await exchange(host, int(port), sent):
                at.record_response(method, sent, code)

        await in_parallel(COUNT // 20, one)
        at.warm()
        await in_parallel(COUNT // 2 - COUNT // 20, one)
        await at.check()
        assert at.codes[grpc.StatusCode.OK]


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect; retry, because some inputs close the listener for a moment (see ``registry_server.rpc.listener``)."""
    deadline = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            return await asyncio.open_connection(host, port)
        except ConnectionError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


async def exchange(host: str, port: int, sent: bytes) -> list[grpc.StatusCode]:
    """Send bytes on a new connection and return the gRPC statuses in the response."""
    received = b""
    reader, writer = await connect(host, port)
    with suppress(ConnectionError, TimeoutError):
        writer.write(sent)
        async with asyncio.timeout(STREAM_SECONDS):
            while chunk := await reader.read(1 << 16):
                received += chunk
    writer.transport.abort()
    return list(statuses(received))


def statuses(received: bytes) -> list[grpc.StatusCode]:
    """Return the ``grpc-status`` of every header block in received bytes."""
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 1 << 32  # the sent settings may have requested any size
    found: list[grpc.StatusCode] = []
    by_number = {code.value[0]: code for code in grpc.StatusCode}
    while len(received) >= 9:
        length = int.from_bytes(received[:3], "big")
        kind, flags, payload = received[3], received[4], received[9 : 9 + length]
        received = received[9 + length :]
        if kind != HEADERS or len(payload) < length:
            continue
        assert flags & END_HEADERS
        try:
            fields = decoder.decode(payload)
        except hpack.HPACKError:  # caused by corrupted settings
            return found
        headers: dict[str, str] = {}
        for name, value in fields:
            headers[str(name)] = str(value)
        if "grpc-status" in headers and not headers.get("grpc-message", "").startswith(GRPC_CORE_MESSAGES):
            found.append(by_number[int(headers["grpc-status"])])
    return found


@pytest.mark.timeout(3600)
async def test_field_floods(tmp_path: Path) -> None:
    wires, dice = valid_requests(), random.Random(COUNT)
    async with target(tmp_path) as at, grpc.aio.insecure_channel(at.server.grpc_address) as channel:
        for _ in range(2):  # memory may grow only the first time
            for method, kind in METHODS.items():
                # The largest messages are refused unparsed by most RPCs: a tenth of these floods suffices.
                for size, share in ((256 << 10, 1.0), (4 << 20, 0.1)):
                    for _, wire in floods(kind, size, wires[method], partial(is_sampled, dice, share)):
                        await call(channel, at, method, wire, at.policy.keys["admin"])
                await at.check_resources(method)
            at.warm()
        assert at.codes[grpc.StatusCode.INVALID_ARGUMENT]
        await at.check()


@pytest.mark.timeout(3600)
async def test_document_floods(tmp_path: Path) -> None:
    dice = random.Random(COUNT)
    async with target(tmp_path) as at, aiohttp.ClientSession(headers=at.policy.headers("admin")) as client:
        url = f"http://{at.server.http_address}/api/v1/registry/services"
        for _ in range(2):
            for method, path in (("POST", url), ("PUT", f"{url}/a")):
                for size in (128 << 10, 1 << 20):
                    for flood, body in document_floods(size, partial(is_sampled, dice)):
                        async with client.request(method, path, data=body, headers=JSON) as response:
                            assert response.status in {200, 201, 400, 404}, flood
                await at.check_resources(method)
            at.warm()
        await at.check()


def is_sampled(dice: random.Random, share: float = 1.0) -> bool:
    """Return whether to send a flood: a share of them with ``make fuzz``, otherwise a fiftieth of it."""
    return dice.random() * 50_000 < share * COUNT


@pytest.mark.timeout(3600)
def test_generated_messages(tmp_path: Path) -> None:
    batch = 25
    with asyncio.Runner() as runner:
        stack = target(tmp_path)
        at = runner.run(stack.__aenter__())
        try:
            _send_all(runner, at, batch)
            runner.run(at.check())
        finally:
            runner.run(stack.__aexit__(None, None, None))
    assert at.codes.total() >= COUNT
    assert at.codes[grpc.StatusCode.OK]
    assert at.codes[grpc.StatusCode.INVALID_ARGUMENT]


def _send_all(runner: asyncio.Runner, at: Target, batch: int) -> None:
    async def send(wires: list[tuple[str, bytes]]) -> None:
        async with asyncio.TaskGroup() as group:
            for method, wire in wires:
                group.create_task(call(channel, at, method, wire, at.policy.keys["admin"]))

    async def opened() -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(at.server.grpc_address)

    channel = runner.run(opened())

    @settings(
        max_examples=-(-COUNT // batch),
        phases=(Phase.generate,),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(requests(), min_size=batch, max_size=batch))
    def run(wires: list[tuple[str, bytes]]) -> None:
        runner.run(send(wires))
        if not at.warmed and at.codes.total() >= COUNT // 10:
            at.warm()

    try:
        while at.codes.total() < COUNT:
            run()
    finally:
        runner.run(channel.close())
