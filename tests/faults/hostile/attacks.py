"""What hostile callers do. ``python -m tests.faults.hostile.attacks TARGET FAMILY...`` repeats families."""

import asyncio
import base64
import gzip
import itertools
import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from tests.fuzz.requests import END_HEADERS, HEADERS, PREFACE, SETTINGS, call_fields, frame, header_block
from tests.support.samples import small_service

PAUSE_SECONDS = 1.0
"""Mean pause between two rounds of a family: the registry must withstand what a round costs, not the speed of the
attacker."""
_JITTER = 0.5
"""Each pause is up to this part of it shorter or longer, so that the families do not remain in phase: their calls would
arrive in one burst, which the harmless callers, whose pauses differ, do not make. The attack's work is the same."""
_CALLS_PER_ROUND = 600
"""Calls of a harmless caller at once: a round of all attacks starts about 1,200 calls and streams for both callers."""
_DATA, _END_STREAM = 0, 1
_METHOD = "/ossa.registry.v1.RegistryService/"
_numbers = itertools.count(os.getpid() << 20)


@dataclass(frozen=True)
class Target:
    """The attacked registry, and what a hostile caller has."""

    grpc_address: str
    http_address: str
    viewer: str
    """API key of a viewer."""
    agent: str
    """API key of an agent, which may own ``evil-*``."""
    forged: str
    """Header and claims of a token that the issuer could have signed."""
    hole: int
    """Port that accepts connections and never answers."""
    closed: int
    """Port that refuses connections."""


class Attacker:
    """A hostile caller with its connections. Each family is one method, which makes one round of the attack."""

    def __init__(self, target: Target, stub: Any, channel: grpc.aio.Channel, http: aiohttp.ClientSession) -> None:
        self.target, self.stub, self.channel, self.http = target, stub, channel, http
        self.outcomes: Counter[str] = Counter()
        self._viewer = (("x-api-key", target.viewer),)
        self._agent = (("x-api-key", target.agent),)

    async def call(self, method: str, request: Any, metadata: Any = (), seconds: float = 5) -> None:
        """Make a call and count its outcome."""
        try:
            await getattr(self.stub, method)(request, metadata=metadata, timeout=seconds)
            self.outcomes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.outcomes[error.code().name] += 1

    async def hold(self, count: int, method: str, request: Any, metadata: Any, seconds: float = 2) -> None:
        """Open streams, read one message of each, and keep them without reading."""
        call: Any = self.channel.unary_stream if not method.endswith("Info") else self.channel.stream_stream
        made = [call(method)(request, metadata=metadata) for _ in range(count)]
        await asyncio.sleep(seconds)
        for each in made:
            each.cancel()
        self.outcomes["streams"] += count

    def leave(self) -> None:
        """Print the outcomes and end the process without closing anything, as a hostile caller would."""
        print(json.dumps(self.outcomes), flush=True)
        os._exit(0)

    # With a role.

    async def costly_queries(self) -> None:
        """Find services by distinct patterns that take long to match."""
        requests = [pb.DiscoverServicesRequest(filter=_costly_filter(), page_size=1) for _ in range(20)]
        await asyncio.gather(*(self.call("DiscoverServices", request, self._viewer) for request in requests))

    async def costly_watches(self) -> None:
        """Watch services by distinct patterns that take long to match."""
        wires = [pb.WatchEventsRequest(filter=_costly_filter()).SerializeToString() for _ in range(100)]
        await asyncio.gather(*(self.hold(1, _METHOD + "WatchEvents", wire, self._viewer, 3) for wire in wires))

    async def waiting_reads(self) -> None:
        """Wait for a revision that never comes."""
        request = pb.GetServiceRequest(name="fleet-1", min_revision=2**62)
        await asyncio.gather(*(self.call("GetService", request, self._viewer, 2) for _ in range(300)))

    async def field_floods(self) -> None:
        """Repeat list fields as often as a message admits."""
        many = [f"x{i}" for i in range(100_000)]
        labels = dict.fromkeys(many[:50000], "v")
        update = pb.UpdateServiceRequest(service=small_service("evil-0"))
        update.update_mask.paths.extend(["metadata.labels"] * 50_000)
        await self.call("DiscoverServices", pb.DiscoverServicesRequest(filter=ServiceFilter(tags=many)), self._viewer)
        await self.call(
            "DiscoverServices", pb.DiscoverServicesRequest(filter=ServiceFilter(labels=labels)), self._viewer
        )
        await self.call("DiscoverServices", pb.DiscoverServicesRequest(page_token="A" * 100_000), self._viewer)
        await self.call("Heartbeat", pb.HeartbeatRequest(names=many), self._agent)
        await self.call("UpdateService", update, self._agent)
        watch = pb.WatchEventsRequest(types=[1] * 500_000).SerializeToString()  # type: ignore[list-item]
        await self.hold(1, _METHOD + "WatchEvents", watch, self._viewer, 0.5)

    async def slow_probes(self) -> None:
        """Register services that accept probes and never answer, and check them on demand."""
        services = [_probed(f"evil-slow-{i}", self.target.hole, timeout=300) for i in range(300)]
        await self.call("BatchRegisterServices", pb.BatchRegisterServicesRequest(services=services), self._agent, 20)
        for _ in range(4):
            checks = (pb.CheckServiceHealthRequest(name=f"evil-slow-{i}") for i in range(70))
            await asyncio.gather(*(self.call("CheckServiceHealth", check, self._agent, 0.5) for check in checks))

    async def failing_services(self) -> None:
        """Register more services than others have, half of which fail their probes."""
        services = [_probed(f"evil-down-{i}", self.target.closed, timeout=1) for i in range(100)]
        await self.call("BatchRegisterServices", pb.BatchRegisterServicesRequest(services=services), self._agent, 20)
        await asyncio.sleep(5)

    async def flapping_records(self) -> None:
        """Change large records again and again."""
        services = [_large(f"evil-{i}", f"1.0.{next(_numbers)}") for i in range(100)]
        await self.call("BatchRegisterServices", pb.BatchRegisterServicesRequest(services=services), self._agent, 20)
        for service in services[:50]:
            await self.call("UnregisterService", pb.UnregisterServiceRequest(name=service.name), self._agent)

    async def gzip_bodies(self) -> None:
        """Send small bodies that inflate to large ones."""
        body = gzip.compress(b'{"name":"' + bytes(16 << 20))
        headers = {"X-Api-Key": self.target.agent, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        await asyncio.gather(*(self._request("POST", "/api/v1/registry/services", headers, body) for _ in range(10)))

    async def refused_requests(self) -> None:
        """Request what does not exist, and what the role forbids."""
        headers = {"X-Api-Key": self.target.viewer}
        for path in ("/api/v1/registry/services/none", "/none", "/api/v1/registry/services?x=" + "y" * 3_000):
            await asyncio.gather(*(self._request("GET", path, headers) for _ in range(30)))
        await self._request("POST", "/api/v1/registry/cleanup", headers)

    async def silent_streams(self) -> None:
        """Open streams that send nothing or read nothing."""
        watch = pb.WatchEventsRequest(include_snapshot=True).SerializeToString()
        await asyncio.gather(
            self.hold(50, _METHOD + "WatchEvents", watch, self._viewer),
            *(self._keep_alive() for _ in range(50)),
        )

    # Without a credential.

    async def junk_credentials(self) -> None:
        """Try keys and tokens; the tokens claim a known subject and have a wrong signature."""
        junk = [f"Bearer ossa_{next(_numbers)}" for _ in range(30)]
        for _ in range(30):
            signature = next(_numbers).to_bytes(8, "big") * 32
            junk.append(f"Bearer {self.target.forged}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}")
        request = pb.GetStatsRequest()
        await asyncio.gather(*(self.call("GetStats", request, (("authorization", each),)) for each in junk))

    async def calls_without_message(self) -> None:
        """Start calls that end without a message, and others whose message never comes."""
        frames = [_call_frame(1 + 2 * i, END_HEADERS | (_END_STREAM if i % 2 else 0)) for i in range(500)]
        await self._send(self.target.grpc_address, PREFACE + frame(SETTINGS, 0, 0, b"") + b"".join(frames), seconds=3)

    async def incomplete_messages(self) -> None:
        """Send messages of which the last byte never comes."""
        part = frame(_DATA, 0, 1, b"\0" + (4 << 20).to_bytes(4, "big") + bytes(16_000))
        wire = PREFACE + frame(SETTINGS, 0, 0, b"") + _call_frame(1, END_HEADERS) + part
        await asyncio.gather(*(self._send(self.target.grpc_address, wire, seconds=3) for _ in range(30)))

    async def unknown_paths(self) -> None:
        """Request long unknown paths, pipelined."""
        one = b"GET /" + b"\x80" * 8_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await asyncio.gather(*(self._send(self.target.http_address, one * 20, seconds=0.5) for _ in range(4)))

    async def unfinished_requests(self) -> None:
        """Send headers and bodies that never end."""
        head = b"POST /api/v1/registry/services HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        wires = [head, head + b"Content-Encoding: gzip\r\nContent-Length: 9000\r\n\r\n" + gzip.compress(bytes(4 << 20))]
        await asyncio.gather(*(self._send(self.target.http_address, wires[i % 2], seconds=3) for i in range(60)))

    async def public_streams(self) -> None:
        """Open the streams that need no credential."""
        reflection = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
        info = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        await asyncio.gather(
            self.hold(100, "/grpc.health.v1.Health/Watch", health_pb2.HealthCheckRequest().SerializeToString(), ()),
            self.hold(100, info, iter([reflection]), ()),
            self.hold(100, _METHOD + "WatchEvents", b"", ()),
        )

    # Harmless load.

    async def harmless_reads(self) -> None:
        """Read services in bursts like those of the attack, with pauses that make the load equal."""
        request = pb.GetServiceRequest(name="fleet-1")
        await asyncio.gather(*(self.call("GetService", request, self._viewer) for _ in range(_CALLS_PER_ROUND)))

    async def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self.http.request(method, path, headers=headers, data=body) as answer:
                await answer.read()
                self.outcomes[str(answer.status)] += 1

    async def _send(self, address: str, wire: bytes, seconds: float) -> None:
        """Send bytes on a new connection, and keep it for some time or until the server closes it."""
        host, _, port = address.rpartition(":")
        with suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(wire)
                async with asyncio.timeout(seconds):
                    while await reader.read(1 << 16):
                        pass
                self.outcomes["connection closed"] += 1
            finally:
                writer.transport.abort()

    async def _keep_alive(self) -> None:
        call = self.stub.KeepAlive(metadata=self._agent)
        with suppress(grpc.aio.AioRpcError):
            await call.write(pb.KeepAliveRequest(names=[f"evil-none-{i}" for i in range(1_000)]))
            await asyncio.sleep(2)
        call.cancel()


WITH_ROLE = (
    "costly_queries", "costly_watches", "waiting_reads", "field_floods", "slow_probes", "failing_services",
    "flapping_records", "gzip_bodies", "refused_requests", "silent_streams",
)  # fmt: skip
WITHOUT_CREDENTIAL = (
    "junk_credentials", "calls_without_message", "incomplete_messages", "unknown_paths", "unfinished_requests",
    "public_streams",
)  # fmt: skip
HARMLESS = ("harmless_reads",)


def _costly_filter() -> ServiceFilter:
    number = next(_numbers)
    return ServiceFilter(name_pattern=f"(?:[a-m].{{20}}|[n-z].{{21}}|[0-9].{{22}}|.{{3}}[a-d].{{10}})q{number}")


def _probed(name: str, port: int, timeout: int) -> Service:
    service = small_service(name, endpoint=f"http://127.0.0.1:{port}")
    service.health_check.http.SetInParent()
    service.health_check.timeout.seconds = timeout
    service.health_check.interval.seconds = timeout
    service.ttl.seconds = 3_600
    return service


def _large(name: str, version: str) -> Service:
    service = small_service(name, version=version)
    service.metadata.labels.update({f"k{i}": "v" * 250 for i in range(60)})
    return service


def _call_frame(stream: int, flags: int) -> bytes:
    fields = call_fields(_METHOD.encode() + b"RegisterService")
    return frame(HEADERS, flags, stream, header_block(fields))


async def attack(target: Target, families: list[str]) -> None:
    """Repeat families concurrently until SIGTERM.

    Print a line after the first round of all of them, and the outcomes at the end; each line of standard input is a new
    pause between rounds.
    """
    pause = PAUSE_SECONDS
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target.grpc_address, options=options))
        http = await stack.enter_async_context(
            aiohttp.ClientSession(f"http://{target.http_address}", timeout=aiohttp.ClientTimeout(total=10))
        )
        attacker = Attacker(target, RegistryServiceStub(channel), channel, http)

        first_rounds = len(families)

        async def repeat(family: Callable[[], Awaitable[None]]) -> None:
            nonlocal first_rounds
            for number in itertools.count():
                try:
                    await family()
                except Exception as error:  # noqa: BLE001 - an attack continues whatever the server does
                    attacker.outcomes[type(error).__name__] += 1
                if number == 0:
                    first_rounds -= 1
                    if not first_rounds:
                        print("attacking", flush=True)
                await asyncio.sleep(pause * random.uniform(1 - _JITTER, 1 + _JITTER))

        signal.signal(signal.SIGTERM, lambda *_: attacker.leave())
        tasks = [asyncio.create_task(repeat(getattr(attacker, name))) for name in families]
        while line := await lines.readline():
            pause = float(line)
        assert tasks
        attacker.leave()  # the parent has ended


def arguments(target: Target, families: tuple[str, ...]) -> list[str]:
    """Return the command line that runs families as a process."""
    return [sys.executable, "-m", __name__, json.dumps(asdict(target)), *families]


if __name__ == "__main__":
    os.nice(19)  # callers have machines of their own: here they take processors that the others leave
    asyncio.run(attack(Target(**json.loads(sys.argv[1])), sys.argv[2:]))
