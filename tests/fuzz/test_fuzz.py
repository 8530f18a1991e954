"""Whatever is sent, the server lives, answers no INTERNAL, logs no bug, and its memory comes back to its level.

``make test`` sends a share of it; ``make fuzz`` sends all.
"""

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import hpack
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from tests.fuzz.requests import END_HEADERS, HEADERS, METHODS, UNARY, broken, connection, good_wires, requests
from tests.support.security import Policy, bearer
from tests.support.server import ServerProcess

COUNT = int(os.environ.get("OSSA_FUZZ", "1000"))
"""How many of each kind: 50,000 by ``make fuzz``."""
IN_FLIGHT = 32
ANSWERED_WITHIN = 30.0
PATIENCE = 1.0
"""Seconds for a call: some ask for a revision that never comes."""
STREAM_LASTS = 0.05
MOST_GROWTH = 48 << 20
"""Bytes by which a process may be larger at the end than after a tenth of it: pools and arenas, and no more."""
OF_GRPC = ("Failed parsing HTTP/2", "Compression bit set but no encoding configured")
"""INTERNAL is what gRPC's core has to answer to these, by its specification; no code of ours has seen such a call."""
BAD = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


class Target:
    """A server process, and what it answered."""

    def __init__(self, server: ServerProcess, policy: Policy) -> None:
        self.server, self.policy = server, policy
        self.codes: Counter[grpc.StatusCode] = Counter()
        self.bad: list[str] = []
        self._level = 0
        self.warmed = False

    @property
    def memory(self) -> int:
        """Bytes that the process holds."""
        text = Path(f"/proc/{self.server.pid}/status").read_text(encoding="ascii")
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024

    def took(self, method: str, wire: bytes, code: grpc.StatusCode) -> None:
        """Notes an answer."""
        self.codes[code] += 1
        if code in BAD and len(self.bad) < 10:
            self.bad.append(f"{method} {code.name} {wire[:200]!r}")

    def warm(self) -> None:
        """Notes how large it is with all its pools filled."""
        self._level, self.warmed = self.memory, True

    async def check(self) -> None:
        """Fails if something went wrong."""
        async with grpc.aio.insecure_channel(self.server.grpc_address) as channel:
            stub = RegistryServiceStub(channel)
            admin = self.policy.metadata("admin")
            request = pb.DiscoverServicesRequest(page_size=1000)
            answer = await stub.DiscoverServices(request, metadata=admin, timeout=ANSWERED_WITHIN, wait_for_ready=True)
            for service in answer.services:
                await stub.UnregisterService(pb.UnregisterServiceRequest(name=service.name), metadata=admin)
        assert self.bad == []
        assert [line for line in self.server.log if line.get("level") in {"error", "critical"}] == []
        give_up = time.monotonic() + ANSWERED_WITHIN
        while (memory := self.memory) > self._level + MOST_GROWTH and time.monotonic() < give_up:
            await asyncio.sleep(0.5)
        print({code.name: count for code, count in self.codes.items()}, f"{self._level >> 20} to {memory >> 20} MiB")
        assert memory <= self._level + MOST_GROWTH


@asynccontextmanager
async def target(directory: Path) -> AsyncIterator[Target]:
    policy = Policy(directory)
    # Not pytest's directory: its path may be too long for the socket of the embedded Redis.
    with tempfile.TemporaryDirectory(prefix="ossa-") as data:
        async with ServerProcess(f"--data-dir={data}", f"--security.policy-file={policy.file}") as server:
            yield Target(server, policy)
            os.kill(server.pid, 0)  # it lives


def credential(policy: Policy, dice: random.Random) -> str:
    """Mostly a good one."""
    if dice.random() < 0.95:
        return policy.keys["admin"]
    return dice.choice((policy.keys["viewer"], "", "ossa_x", "a.b.c", "x" * 5000, "é"))


async def call(channel: grpc.aio.Channel, at: Target, method: str, wire: bytes, shown: str) -> None:
    """Makes a call with bytes as its request."""
    metadata = bearer(shown) if shown.isascii() else ()
    if method in UNARY:
        unary: Any = channel.unary_unary(method)
        at.took(method, wire, await unary(wire, metadata=metadata, timeout=PATIENCE).code())
        return
    made: Any = channel.stream_stream(method)
    stream = made(metadata=metadata, timeout=PATIENCE)
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await stream.write(wire)
        await stream.done_writing()
        with suppress(TimeoutError):
            async with asyncio.timeout(STREAM_LASTS):
                while await stream.read() is not grpc.aio.EOF:
                    pass
    stream.cancel()
    at.took(method, wire, await stream.code())


async def in_parallel(count: int, one: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Makes ``count`` calls, some of them at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())


@pytest.mark.timeout(1800)
async def test_bodies_that_are_no_messages(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    wires = good_wires()
    async with target(tmp_path) as at, grpc.aio.insecure_channel(at.server.grpc_address) as channel:

        async def one(number: int) -> None:
            # Streams take their time: a twentieth is enough of them.
            method = dice.choice(list(METHODS if number % 20 == 0 else UNARY))
            await call(channel, at, method, broken(wires[method], dice), credential(at.policy, dice))

        await in_parallel(COUNT // 20, one)
        at.warm()
        await in_parallel(COUNT // 2 - COUNT // 20, one)
        await at.check()
        assert at.codes[grpc.StatusCode.INVALID_ARGUMENT] > COUNT // 20


@pytest.mark.timeout(1800)
async def test_http_2_that_is_none(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    wires = good_wires()
    async with target(tmp_path) as at:
        host, _, port = at.server.grpc_address.rpartition(":")

        async def one(_: int) -> None:
            method = dice.choice(list(METHODS))
            wire = wires[method] if dice.random() < 0.5 else broken(wires[method], dice)
            sent = connection(method, wire, credential(at.policy, dice), dice)
            for code in await exchange(host, int(port), sent):
                at.took(method, sent, code)

        await in_parallel(COUNT // 20, one)
        at.warm()
        await in_parallel(COUNT // 2 - COUNT // 20, one)
        await at.check()
        assert at.codes[grpc.StatusCode.OK]


async def connect(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects; for a moment after some of what is sent nobody listens (see ``registry_server.rpc.listener``)."""
    give_up = time.monotonic() + ANSWERED_WITHIN
    while True:
        try:
            return await asyncio.open_connection(host, port)
        except ConnectionError:
            if time.monotonic() > give_up:
                raise
        await asyncio.sleep(0.05)


async def exchange(host: str, port: int, sent: bytes) -> list[grpc.StatusCode]:
    """Sends bytes on a connection of its own; gives the statuses in what comes back."""
    received = b""
    reader, writer = await connect(host, port)
    with suppress(ConnectionError, TimeoutError):
        writer.write(sent)
        async with asyncio.timeout(STREAM_LASTS):
            while piece := await reader.read(1 << 16):
                received += piece
    writer.transport.abort()
    return list(statuses(received))


def statuses(received: bytes) -> list[grpc.StatusCode]:
    """The ``grpc-status`` of every header block of a server."""
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 1 << 32  # what was sent may have asked for any
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
        except hpack.HPACKError:  # by settings that were sent, or not sent, by mistake
            return found
        told: dict[str, str] = {}
        for name, value in fields:
            told[str(name)] = str(value)
        if "grpc-status" in told and not told.get("grpc-message", "").startswith(OF_GRPC):
            found.append(by_number[int(told["grpc-status"])])
    return found


@pytest.mark.timeout(3600)
def test_requests_that_are_messages(tmp_path: Path) -> None:
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
