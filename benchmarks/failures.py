"""Time until watchers are notified of a dead endpoint and of an expired lease, compared with etcd's leases."""

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
_PROBE_INTERVAL_SECONDS, _PROBE_TIMEOUT_SECONDS, _FAILURE_THRESHOLD = 1.0, 0.5, 3
_PROBING = (
    "--health-check.enabled=true",
    f"--health-check.interval-ms={_PROBE_INTERVAL_SECONDS * 1000:.0f}",
    f"--health-check.timeout-ms={_PROBE_TIMEOUT_SECONDS * 1000:.0f}",
    f"--health-check.failure-threshold={_FAILURE_THRESHOLD}",
)
_LEASES = 20
_TTL_SECONDS = 5
_WAIT_TIMEOUT_SECONDS = 60.0


async def run(report: Report, args: argparse.Namespace) -> None:
    """Kill endpoints, then let leases expire."""
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as name:
        async with AsyncExitStack() as stack:
            folder = Path(name)
            address = await stack.enter_async_context(registry(folder, *_PROBING))
            etcd_address = await stack.enter_async_context(etcd.etcd()) if etcd.is_available() else ""
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            stub = RegistryServiceStub(channel)
            await _deaths(report, stub, args.rounds)
            await _leases(report, stub, etcd_address, args.rounds)


async def _deaths(report: Report, stub: "RegistryServiceAsyncStub", rounds: int) -> None:
    report.title(f"{_DYING} of {_DYING + _STAYING} endpoints die: time until a watcher receives UNHEALTHY")
    expected_maximum = _PROBE_INTERVAL_SECONDS * _FAILURE_THRESHOLD + _PROBE_TIMEOUT_SECONDS
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
                killed_at = time.perf_counter()
                received = await _until(stream, names, HealthStatus.HEALTH_STATUS_UNHEALTHY)
                stream.cancel()
                for name in names:  # too many dead services would activate self-preservation
                    await stub.UnregisterService(UnregisterServiceRequest(name=name))
            delays = [at - killed_at for at in received.values()]
            slowest.append(max(delays))
            report.line("median, slowest", f"{statistics.median(delays):.2f} s {max(delays):.2f} s")
    report.line("expected maximum: interval x threshold + timeout", f"{expected_maximum:.2f} s")
    report.at_most("slowest, beyond the expected maximum", max(slowest) - expected_maximum, 0.5, "s")


async def _leases(report: Report, stub: "RegistryServiceAsyncStub", etcd_address: str, rounds: int) -> None:
    report.title(f"{_LEASES} leases of {_TTL_SECONDS} s expire: delay until a watcher receives the event")
    registry_delays: list[float] = []
    etcd_delays: list[float] = []
    for i in range(rounds):
        names = [f"lease{i}-{number}" for number in range(_LEASES)]
        measurements = [_registry_delays(stub, names)]
        if etcd_address:
            measurements.append(_etcd_delays(etcd_address, i, names))
        measured = await asyncio.gather(*measurements)
        registry_delays += measured[0]
        etcd_delays += measured[1] if etcd_address else ()
        text = ", ".join(f"{statistics.median(each):.2f} s {max(each):.2f} s" for each in measured)
        report.line("delay, median and maximum: registry, etcd" if etcd_address else "delay, median and maximum", text)
    report.at_most("delay, median", statistics.median(registry_delays), 0.5, "s")
    if etcd_delays:
        report.line("delay of etcd, median", f"{statistics.median(etcd_delays):.2f} s")


async def _registry_delays(stub: "RegistryServiceAsyncStub", names: list[str]) -> list[float]:
    stream = stub.WatchEvents(WatchEventsRequest(types=[EventType.EVENT_TYPE_SERVICE_UNREGISTERED]))
    await stream.read()
    fleet = [
        Service(name=name, endpoint="tcp://127.0.0.1:9", version="1.0.0", ttl=Duration(seconds=_TTL_SECONDS))
        for name in names
    ]
    for service in fleet:
        service.health_check.heartbeat.SetInParent()
    await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=fleet))
    end = time.perf_counter() + _TTL_SECONDS
    received = await _until(stream, set(names), None)
    stream.cancel()
    return [at - end for at in received.values()]


async def _etcd_delays(address: str, i: int, names: list[str]) -> list[float]:
    received: dict[str, float] = {}
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(_WAIT_TIMEOUT_SECONDS):
        watch: Any = channel.stream_stream(etcd.WATCH)

        async def requests() -> AsyncIterator[bytes]:
            yield etcd.watch()
            await asyncio.Event().wait()

        for number, name in enumerate(names):
            lease = 1 + i * _LEASES + number
            await etcd.grant(address, lease, _TTL_SECONDS)
            await etcd.call(address, etcd.PUT, etcd.put(name, b"x", lease))
        end = time.perf_counter() + _TTL_SECONDS  # end of the last lease
        stream = watch(requests())
        await stream.read()  # confirms that the watch is established: all later events are deletions
        while len(received) < len(names):
            for name in re.findall(rb"/services/(lease[\d-]+)", await stream.read()):
                received.setdefault(name.decode(), time.perf_counter())
        stream.cancel()
    # All leases were granted within milliseconds.
    return [at - end for at in received.values()]


async def _register(stub: "RegistryServiceAsyncStub", prefix: str, ports: list[str]) -> None:
    fleet = [
        Service(name=f"{prefix}-{i}", endpoint=f"http://127.0.0.1:{port}", version="1.0.0", ttl=Duration())
        for i, port in enumerate(ports)
    ]
    await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=fleet))


async def _until(stream: Any, names: set[str], status: int | None) -> dict[str, float]:
    """Read events until every service has the status, or is removed if the status is ``None``.

    Returns:
        For each service, the ``time.perf_counter()`` at which the event arrived.
    """
    received: dict[str, float] = {}
    async with asyncio.timeout(_WAIT_TIMEOUT_SECONDS):
        while len(received) < len(names):
            for event in (await stream.read()).events:
                gone = event.type == EventType.EVENT_TYPE_SERVICE_UNREGISTERED
                if event.service.name in names and (gone if status is None else event.service.health.status == status):
                    received.setdefault(event.service.name, time.perf_counter())
    return received
