"""Hostile callers beside honest ones: what honest callers notice, and what memory the attack leaves."""

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.service_pb2 import HealthStatus, Service, ServiceFilter
from tests.faults.hostile.attacks import HARMLESS, PAUSE_SECONDS, WITH_ROLE, WITHOUT_CREDENTIAL, Target, arguments
from tests.support.redis_process import RedisProcess, free_port
from tests.support.samples import small_service
from tests.support.security import Policy, bearer, token
from tests.support.server import ServerProcess, connected

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

HONEST_SERVICES = 20
LEASE_SECONDS = 20
_PROBE_SECONDS = 5
_TIMEOUT_SECONDS, _ATTEMPTS = 30, 5
_HEARTBEAT_SECONDS = 2.0
_TOKEN_SECONDS = 1.0
_READERS, _READ_PAUSE_SECONDS = 4, 0.02
_SETTLE_SECONDS = 8.0
_START_TIMEOUT_SECONDS = 120.0
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Report:
    """What the honest callers saw."""

    violations: list[str] = field(default_factory=list)
    p99_hostile: float = 0.0
    """99th percentile of GetService beside the hostile callers, in seconds."""
    p99_harmless: float = 0.0
    """The same beside harmless load that takes equal processor time."""
    processors_hostile: float = 0.0
    """Processors that the registry used beside the hostile callers."""
    processors_harmless: float = 0.0
    added_mib: float = 0.0
    """Memory that the second attack added."""
    retries: int = 0
    """Calls of honest callers that were UNAVAILABLE and repeated."""
    stalls: float = 0.0
    """Stalls of the event loop during the attacks."""
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"GetService p99: {self.p99_hostile * 1000:.1f} ms beside hostile callers "
            f"({self.processors_hostile:.2f} processors), {self.p99_harmless * 1000:.1f} ms beside harmless load "
            f"({self.processors_harmless:.2f}); the second attack added {self.added_mib:.1f} MiB; "
            f"{self.stalls:.0f} stalls of the event loop; "
            f"{self.retries} retries; {len(self.violations)} violations"
        )


class Honest:
    """Honest callers at the same address: services with probes and with heartbeats, readers, and tokens."""

    def __init__(self, stub: "RegistryServiceAsyncStub", policy: Policy, port: int, report: Report) -> None:
        self._stub, self._policy, self._report = stub, policy, report
        self._services = [_honest_service(i, port) for i in range(HONEST_SERVICES)]
        self.latencies: list[float] = []
        """Durations of GetService in seconds."""

    async def start(self) -> None:
        """Register the services and wait until all are healthy."""
        request = pb.BatchRegisterServicesRequest(services=self._services)
        answer = await self._stub.BatchRegisterServices(request, metadata=self._policy.metadata("agent"))
        assert all(result.HasField("service") for result in answer.results), answer
        find = pb.DiscoverServicesRequest(filter=ServiceFilter(health=[HealthStatus.HEALTH_STATUS_HEALTHY]))
        async with asyncio.timeout(30):
            while True:
                found = await self._stub.DiscoverServices(find, metadata=self._policy.metadata("viewer"))
                if found.total_size >= HONEST_SERVICES:
                    return
                await asyncio.sleep(0.1)

    async def run(self) -> None:
        """Act until cancelled; every failed call and every event about an honest service is a violation."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._beat())
            group.create_task(self._renew_tokens())
            for _ in range(_READERS):
                group.create_task(self._read())

    async def _call(self, method: str, request: Any, metadata: Any) -> float:
        """Make a call, with retries of UNAVAILABLE as in the SDK, and return its duration in seconds."""
        began, error = time.perf_counter(), ""
        for _ in range(_ATTEMPTS):
            try:
                await getattr(self._stub, method)(request, metadata=metadata, timeout=_TIMEOUT_SECONDS)
                break
            except grpc.aio.AioRpcError as caught:
                error = f"{method} failed: {caught.code().name} {caught.details()}"
                if caught.code() is not grpc.StatusCode.UNAVAILABLE:
                    self._report.violations.append(error)
                    break
                self._report.retries += 1
                await asyncio.sleep(1)
        else:
            self._report.violations.append(error)
        return time.perf_counter() - began

    async def _read(self) -> None:
        while True:
            request = pb.GetServiceRequest(name="fleet-1")
            self.latencies.append(await self._call("GetService", request, self._policy.metadata("viewer")))
            await asyncio.sleep(_READ_PAUSE_SECONDS)

    async def _beat(self) -> None:
        names = [service.name for service in self._services if service.health_check.HasField("heartbeat")]
        while True:
            await self._call("Heartbeat", pb.HeartbeatRequest(names=names), self._policy.metadata("agent"))
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _renew_tokens(self) -> None:
        number = 0
        while True:
            for subject in ("someone", f"new-{number}"):
                metadata = bearer(token(subject, roles=["viewer"], number=number))
                await self._call("GetService", pb.GetServiceRequest(name="fleet-2"), metadata)
            number += 1
            await asyncio.sleep(_TOKEN_SECONDS)

    async def _watch(self) -> None:
        watched = ServiceFilter(name_pattern="^fleet-")
        while True:
            request = pb.WatchEventsRequest(filter=watched, include_snapshot=True)
            try:
                async for message in self._stub.WatchEvents(request, metadata=self._policy.metadata("viewer")):
                    for event in message.events:
                        if event.type != EventType.EVENT_TYPE_SERVICE_SNAPSHOT:
                            self._report.violations.append(_described(event))
            except grpc.aio.AioRpcError as error:
                self._report.violations.append(f"the watch ended: {error.code().name} {error.details()}")
                await asyncio.sleep(0.5)


@dataclass
class _Stage:
    """A registry with its honest callers."""

    server: ServerProcess
    target: Target
    honest: Honest
    report: Report

    async def phase(
        self, name: str, callers: Sequence[Sequence[str]], seconds: float, processors: float | None = None
    ) -> tuple[float, float]:
        """Run one process for each caller.

        Args:
            name: Name in the report.
            callers: The families that each caller repeats.
            seconds: Duration after the first round of all families.
            processors: Processors that the registry should use; ``None`` = as many as the callers make it use.

        Returns:
            The 99th percentile of GetService in seconds, and the processors that the registry used.
        """
        processes = [await _start(self.target, families) for families in callers]
        async with asyncio.timeout(_START_TIMEOUT_SECONDS):
            for process in processes:
                assert process.stdout is not None
                await process.stdout.readline()
        self.honest.latencies.clear()
        began, used = time.monotonic(), _processor_seconds(self.server.pid)
        await _keep_equal(processes, self.server.pid, processors, seconds)
        used = (_processor_seconds(self.server.pid) - used) / (time.monotonic() - began)
        p99 = _p99(self.honest.latencies)
        for families, process in zip(callers, processes, strict=True):
            process.terminate()
            output, _ = await process.communicate()
            self.report.outcomes[f"{name}: {families[0]} …"] = json.loads(output or b"{}")
        print(f"{name}: GetService p99 {p99 * 1000:.1f} ms, {used:.2f} processors", flush=True)
        return p99, used


async def run(seconds: float, directory: Path, families: Sequence[str] = ()) -> Report:
    """Attack twice, with harmless load of equal processor time in between.

    Args:
        seconds: Duration of each phase.
        directory: Directory for data and the policy.
        families: Families of attacks; empty = all.
    """
    hostile = [
        chosen
        for caller in (WITH_ROLE, WITHOUT_CREDENTIAL)
        if (chosen := [each for each in caller if each in (families or caller)])
    ]
    async with _staged(directory) as stage:
        report, pid, settle_seconds = stage.report, stage.server.pid, min(_SETTLE_SECONDS, seconds)
        stalls = await _stalls(stage)
        first, used = await stage.phase("first attack", hostile, seconds)
        report.stalls = await _stalls(stage) - stalls
        report.p99_harmless, report.processors_harmless = await stage.phase(
            "harmless", [HARMLESS] * len(hostile), seconds, processors=used
        )
        await asyncio.sleep(settle_seconds)
        stalls, before = await _stalls(stage), _resident_mib(pid)
        second, used_again = await stage.phase("second attack", hostile, seconds)
        report.stalls += await _stalls(stage) - stalls
        await asyncio.sleep(settle_seconds)
        report.added_mib = _resident_mib(pid) - before
        report.p99_hostile = max(first, second)
        report.processors_hostile = max(used, used_again)
    return report


@asynccontextmanager
async def _staged(directory: Path) -> AsyncIterator[_Stage]:
    """Run the registry and its honest callers; an honest caller that fails ends the scenario."""
    report = Report()
    policy = Policy(directory / "policy")
    policy.keys["evil"] = "ossa_evil"
    policy.document["api_keys"].append(policy.entry("evil", role="agent", patterns=["evil-*"]))
    policy.write()
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisProcess(directory / "redis"))
        flags = (f"--redis.url={redis.url}", f"--security.policy-file={policy.file}", "--health-check.enabled=true")
        server = await stack.enter_async_context(ServerProcess(*flags, "--log.audit=off", forked=False))
        _, stub = await stack.enter_async_context(connected(server.grpc_address))
        hole = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))  # accepts, and never answers
        honest = Honest(stub, policy, await stack.enter_async_context(_answering()), report)
        await honest.start()
        target = Target(
            server.grpc_address,
            server.http_address,
            policy.keys["viewer"],
            policy.keys["evil"],
            token("someone", roles=["viewer"]).rpartition(".")[0],
            hole.getsockname()[1],
            free_port(),
        )
        async with asyncio.TaskGroup() as group:
            acting = group.create_task(honest.run())
            yield _Stage(server, target, honest, report)
            acting.cancel()
        report.violations += [
            f"logged {line}" for line in server.log if line.get("level") in ("error", "critical") or "level" not in line
        ]


def _honest_service(number: int, port: int) -> Service:
    service = small_service(f"fleet-{number}", endpoint=f"http://127.0.0.1:{port}")
    service.ttl.seconds = LEASE_SECONDS
    if number % 2:
        service.health_check.heartbeat.SetInParent()
    else:
        service.health_check.http.SetInParent()
        service.health_check.interval.seconds = _PROBE_SECONDS
    return service


@asynccontextmanager
async def _answering() -> AsyncIterator[int]:
    """Run the endpoint of the honest services, and yield its port."""

    async def healthy(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/{path:.*}", healthy)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _start(target: Target, families: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *arguments(target, tuple(families)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )


async def _keep_equal(
    processes: Sequence[asyncio.subprocess.Process], pid: int, processors: float | None, seconds: float
) -> None:
    """Wait; meanwhile adjust the pauses of the load, so that the registry uses this number of processors."""
    pause, ends = PAUSE_SECONDS / 4, time.monotonic() + seconds
    while time.monotonic() < ends:
        used = _processor_seconds(pid)
        began = time.monotonic()
        await asyncio.sleep(0.25)
        if processors is None:
            continue
        share = (_processor_seconds(pid) - used) / (time.monotonic() - began)
        pause = min(max(pause * min(max(share / processors, 0.5), 2.0), 0.001), 2.0)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(f"{pause}\n".encode())


async def _stalls(stage: _Stage) -> float:
    url, headers = f"http://{stage.server.http_address}/metrics", {"X-Api-Key": stage.target.viewer}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(url) as answer:
        families = text_string_to_metric_families(await answer.text())
    name = "ossa_registry_event_loop_stall_seconds_count"
    return next(sample.value for family in families for sample in family.samples if sample.name == name)


def _described(event: Any) -> str:
    status = HealthStatus.Name(event.service.health.status)
    return f"{event.service.name}: {EventType.Name(event.type)}, {status}: {event.service.health.error}"


def _p99(latencies: Sequence[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)] if latencies else float("inf")


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


def _resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * 4096 / (1 << 20)
