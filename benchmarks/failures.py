"""How long until watchers hear that an endpoint is dead, and that a lease has run out; etcd's leases beside it."""

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.duration_pb2 import Duration

from benchmarks import etcd
from benchmarks.processes import process, registry
from benchmarks.report import Report
from ossa.registry.v1.event_pb2 import EventType
from ossa.registry.v1.registry_service_pb2 import (
    BatchRegisterServicesRequest,
    UnregisterServiceRequest,
    WatchEventsRequest,
)
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import HealthStatus, Service

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

_DYING, _STAYING = 10, 40
_INTERVAL, _TIMEOUT, _THRESHOLD = 1.0, 0.5, 3
_PROBING = (
    "--health-check.enabled=true",
    f"--health-check.interval-ms={_INTERVAL * 1000:.0f}",
    f"--health-check.timeout-ms={_TIMEOUT * 1000:.0f}",
    f"--health-check.failure-threshold={_THRESHOLD}",
)
_LEASES = 20
_TTL = 5  # seconds
_PATIENCE = 60.0


async def run(report: Report, args: argparse.Namespace) -> None:
    """Lets endpoints die, then leases."""
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as name:
        async with AsyncExitStack() as stack:
            folder = Path(name)
            ours = await stack.enter_async_context(registry(folder, *_PROBING))
            peer = await stack.enter_async_context(etcd.etcd()) if etcd.is_available() else ""
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(ours))
            stub = RegistryServiceStub(channel)
            await _deaths(report, stub, args.rounds)
            await _leases(report, stub, peer, args.rounds)


async def _deaths(report: Report, stub: "RegistryServiceAsyncStub", rounds: int) -> None:
    report.title(f"{_DYING} of {_DYING + _STAYING} endpoints die: from there to the event UNHEALTHY at a watcher")
    arithmetic = _INTERVAL * _THRESHOLD + _TIMEOUT
    slowest = []
    async with process(r"([\d,]+)", r"\d", "-m", "benchmarks.endpoints", str(_STAYING)) as staying:
        await _register(stub, "stays", staying.split(","))
        for i in range(rounds):
            names = {f"dies{i}-{number}" for number in range(_DYING)}
            async with AsyncExitStack() as stack:
                endpoints = process(r"([\d,]+)", r"\d", "-m", "benchmarks.endpoints", str(_DYING))
                dying = await stack.enter_async_context(endpoints)
                stream = stub.WatchEvents(WatchEventsRequest())
                await stream.read()
                await _register(stub, f"dies{i}", dying.split(","))
                await _until(stream, names, HealthStatus.HEALTH_STATUS_HEALTHY)
                await stack.aclose()
                killed = time.perf_counter()
                heard = await _until(stream, names, HealthStatus.HEALTH_STATUS_UNHEALTHY)
                stream.cancel()
                for name in names:  # or after some rounds so many are dead that the registry doubts itself
                    await stub.UnregisterService(UnregisterServiceRequest(name=name))
            took = [at - killed for at in heard.values()]
            slowest.append(max(took))
            report.line("median, slowest", f"{statistics.median(took):.2f} s {max(took):.2f} s")
    report.line("bare arithmetic: interval x threshold + timeout", f"{arithmetic:.2f} s")
    report.at_most("slowest beyond the arithmetic", max(slowest) - arithmetic, 0.5, "s")


async def _leases(report: Report, stub: "RegistryServiceAsyncStub", peer: str, rounds: int) -> None:
    report.title(f"{_LEASES} leases of {_TTL} s run out: from there to the event at a watcher; etcd's")
    ours: list[float] = []
    theirs: list[float] = []
    for i in range(rounds):
        names = [f"lease{i}-{number}" for number in range(_LEASES)]
        late = [_ours_late(stub, names)]
        if peer:
            late.append(_etcd_late(peer, i, names))
        measured = await asyncio.gather(*late)
        ours += measured[0]
        theirs += measured[1] if peer else ()
        text = ", ".join(f"{statistics.median(each):.2f} s {max(each):.2f} s" for each in measured)
        report.line("late, median and most: ours, etcd" if peer else "late, median and most", text)
    report.at_most("median beyond the lease", statistics.median(ours), 0.5, "s")
    if theirs:
        report.line("the same of etcd", f"{statistics.median(theirs):.2f} s")


async def _ours_late(stub: "RegistryServiceAsyncStub", names: list[str]) -> list[float]:
    stream = stub.WatchEvents(WatchEventsRequest(types=[EventType.EVENT_TYPE_SERVICE_UNREGISTERED]))
    await stream.read()
    fleet = [
        Service(name=name, endpoint="tcp://127.0.0.1:9", version="1.0.0", ttl=Duration(seconds=_TTL)) for name in names
    ]
    for service in fleet:
        service.health_check.heartbeat.SetInParent()
    await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=fleet))
    end = time.perf_counter() + _TTL
    heard = await _until(stream, set(names), None)
    stream.cancel()
    return [at - end for at in heard.values()]


async def _etcd_late(address: str, i: int, names: list[str]) -> list[float]:
    heard: dict[str, float] = {}
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(_PATIENCE):
        watch: Any = channel.stream_stream(etcd.WATCH)

        async def requests() -> AsyncIterator[bytes]:
            yield etcd.watch()
            await asyncio.Event().wait()

        for number, name in enumerate(names):
            lease = 1 + i * _LEASES + number
            await etcd.grant(address, lease, _TTL)
            await etcd.call(address, etcd.PUT, etcd.put(name, b"x", lease))
        end = time.perf_counter() + _TTL  # of the last
        stream = watch(requests())
        await stream.read()  # which says that it watches: all that follows are deletions
        while len(heard) < len(names):
            for name in re.findall(rb"/services/(lease[\d-]+)", await stream.read()):
                heard.setdefault(name.decode(), time.perf_counter())
        stream.cancel()
    # Leases were granted one after the other, within milliseconds.
    return [at - end for at in heard.values()]


async def _register(stub: "RegistryServiceAsyncStub", prefix: str, ports: list[str]) -> None:
    fleet = [
        Service(name=f"{prefix}-{i}", endpoint=f"http://127.0.0.1:{port}", version="1.0.0", ttl=Duration())
        for i, port in enumerate(ports)
    ]
    await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=fleet))


async def _until(stream: Any, names: set[str], status: int | None) -> dict[str, float]:
    """Reads events until all have this status, or are gone if it is none; gives when each was heard."""
    heard: dict[str, float] = {}
    async with asyncio.timeout(_PATIENCE):
        while len(heard) < len(names):
            for event in (await stream.read()).events:
                gone = event.type == EventType.EVENT_TYPE_SERVICE_UNREGISTERED
                if event.service.name in names and (gone if status is None else event.service.health.status == status):
                    heard.setdefault(event.service.name, time.perf_counter())
    return heard
