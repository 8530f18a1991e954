"""Events to many watchers, compared with a bare grpc.aio loop that writes the same bytes and with etcd's ``Watch``."""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from benchmarks import etcd, replay
from benchmarks.fleet import services
from benchmarks.processes import process, registry
from benchmarks.report import Report
from ossa.registry.v1.event_pb2 import Event
from ossa.registry.v1.registry_service_pb2 import (
    BatchRegisterServicesRequest,
    RegisterServiceRequest,
    WatchEventsRequest,
    WatchEventsResponse,
)
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import Service

_SERVICE = "/ossa.registry.v1.RegistryService"
_BURSTS_PER_ROUND = 5  # a single burst takes only milliseconds
_BATCH = 500
_CHANGES_PER_SECOND, _STEADY_SECONDS, _STEADY_WATCHERS = 100, 60, 1_000
_MARKER = "change-"


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure one event to many watchers, many events to fewer watchers, and a steady rate of events."""
    if not replay.is_available():
        report.skipped("Fan-out", "Go, for the load generator")
        return
    await replay.build()
    await _scenario(report, args.rounds, watchers=1_000, events=1)
    await _scenario(report, args.rounds, watchers=5_000, events=1, connections=5_000)
    await _scenario(report, args.rounds, watchers=100, events=1_000)
    await measure_steady_rate(report, watchers=_STEADY_WATCHERS, seconds=_STEADY_SECONDS)


async def _scenario(report: Report, rounds: int, *, watchers: int, events: int, connections: int = 4) -> None:
    report.title(f"{events:,} event{'s' * (events > 1)} to {watchers:,} watchers on {connections:,} connections")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        address = await stack.enter_async_context(registry(folder))
        etcd_address = await stack.enter_async_context(etcd.etcd()) if etcd.is_available() else ""
        (folder / "event").write_bytes(await _event(address))
        arguments = ("-m", "benchmarks.bare_watch", str(folder / "event"), str(events))
        port = await stack.enter_async_context(process(r"(\d+)", r"\d", *arguments))
        watch = replay.requests_file(folder / "watch", [WatchEventsRequest().SerializeToString()])
        empty = replay.requests_file(folder / "empty", [b""] * _BURSTS_PER_ROUND)
        flags = (
            f"-watchers={watchers}",
            f"-events={events}",
            f"-rounds={_BURSTS_PER_ROUND}",
            f"-connections={connections}",
        )
        bare_ms, own_ms, etcd_ms = [], [], []
        for i in range(rounds):
            bare_ms.append(
                await _median(replay.fanout(f"127.0.0.1:{port}", "/bare/Watch", watch, "/bare/Trigger", empty, *flags))
            )
            changes = _changes(folder, i, events)
            own_ms.append(await _median(replay.fanout(address, f"{_SERVICE}/WatchEvents", watch, *changes, *flags)))
            text = f"{bare_ms[-1]:,.0f} ms {own_ms[-1]:,.0f} ms"
            if etcd_address:
                etcd_ms.append(await _etcd(folder, etcd_address, i, events, flags))
                text += f" {etcd_ms[-1]:,.0f} ms"
            report.line("last delivery: bare loop, registry, etcd", text)
        ratios = [own / bare for own, bare in zip(own_ms, bare_ms, strict=True)]
        if events == 1:
            report.at_most("ratio of the last delivery to the bare loop, median", statistics.median(ratios), 1.5, "")
        else:
            deliveries = watchers * events / statistics.median(own_ms) * 1000
            report.line("deliveries per second, median", f"{deliveries:,.0f}/s")
            report.at_least("ratio of deliveries/s to the bare loop, median", 1 / statistics.median(ratios), 5)
        if etcd_ms:
            ratio = statistics.median(other / own for other, own in zip(etcd_ms, own_ms, strict=True))
            report.line("delivery time of etcd relative to the registry, median", f"{ratio:.2f}")


async def measure_steady_rate(report: Report, *, watchers: int, seconds: int) -> None:
    """Measure the delivery of a steady rate of events to watchers with a connection each."""
    report.title(
        f"{_CHANGES_PER_SECOND} changes per second to {watchers:,} watchers on as many connections, {seconds} s"
    )
    count = _CHANGES_PER_SECOND * seconds
    flags = (f"-watchers={watchers}", f"-connections={watchers}", f"-rate={_CHANGES_PER_SECOND}")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        changed = list(_marked(count))
        address = await stack.enter_async_context(registry(folder))
        registered = (RegisterServiceRequest(service=one).SerializeToString() for one in changed)
        own = await replay.steady(
            address,
            f"{_SERVICE}/WatchEvents",
            replay.requests_file(folder / "watch", [WatchEventsRequest().SerializeToString()]),
            f"{_SERVICE}/RegisterService",
            replay.requests_file(folder / "changes", registered),
            *flags,
            marker=_MARKER,
        )
        (folder / "event").write_bytes(WatchEventsResponse(events=[Event(service=changed[0])]).SerializeToString())
        arguments = ("-m", "benchmarks.bare_watch", str(folder / "event"), str(count))
        port = await stack.enter_async_context(process(r"(\d+)", r"\d", *arguments))
        bare = await replay.steady(
            f"127.0.0.1:{port}",
            "/bare/Subscribe",
            folder / "watch",
            "/bare/Publish",
            replay.requests_file(folder / "rate", [b"%d" % _CHANGES_PER_SECOND]),
            *flags,
            f"-events={count}",
            marker=_MARKER,
        )
        results = {"bare loop": bare, "registry": own}
        if etcd.is_available():
            puts = (etcd.put(one.name, one.SerializeToString()) for one in changed)
            results["etcd"] = await replay.steady(
                await stack.enter_async_context(etcd.etcd()),
                etcd.WATCH,
                replay.requests_file(folder / "etcd-watch", [etcd.watch()]),
                etcd.PUT,
                replay.requests_file(folder / "puts", puts),
                *flags,
                "-keep-open",
                marker=_MARKER,
            )
    for name, found in results.items():
        text = f"{found.delivery.p50:,.0f} {found.delivery.p99:,.0f} {found.delivery.max:,.0f} ms"
        report.line(f"{name}: start of the change to its delivery: p50, p99, maximum", text)
        report.line(f"{name}: events per message, mean", f"{count * watchers / found.messages:.1f}")
        if found is not bare:
            response = f"{found.call.p50:,.0f} {found.call.p99:,.0f} ms"
            report.line(f"{name}: start of the change to its response: p50, p99", response)
    report.line("p99 of the delivery: ratio to the bare loop", f"{own.delivery.p99 / bare.delivery.p99:.2f}")
    if "etcd" in results:
        ratio = results["etcd"].delivery.p99 / own.delivery.p99
        report.line("p99 of the delivery: etcd relative to the registry", f"{ratio:.2f}")


def _marked(count: int) -> Iterator[Service]:
    """Yield changes of services, each with its number after the marker."""
    fleet = list(services(_CHANGES_PER_SECOND))
    for number in range(count):
        changed = Service()
        changed.CopyFrom(fleet[number % len(fleet)])
        changed.metadata.description = f"{_MARKER}{number:06}"
        yield changed


async def _median(measured: "replay.Measured") -> float:
    return statistics.median(await measured)


def _changes(folder: Path, i: int, events: int) -> tuple[str, Path]:
    """Return the method and the requests that cause the events: each one registers services with a new version."""
    fleet = list(services(_BURSTS_PER_ROUND)) if events == 1 else list(services(events)) * _BURSTS_PER_ROUND
    requests = []
    size = min(events, _BATCH)
    for start in range(0, len(fleet), size):
        batch = []
        for one in fleet[start : start + size]:
            changed = Service()
            changed.CopyFrom(one)
            changed.version = f"3.{i}.{start}"
            batch.append(changed)
        requests.append(BatchRegisterServicesRequest(services=batch).SerializeToString())
    return f"{_SERVICE}/BatchRegisterServices", replay.requests_file(folder / "changes", requests)


async def _etcd(folder: Path, address: str, i: int, events: int, flags: tuple[str, ...]) -> float:
    watch = replay.requests_file(folder / "etcd-watch", [etcd.watch()])
    fleet = list(services(events)) * _BURSTS_PER_ROUND
    puts = [etcd.put(one.name, one.SerializeToString() + bytes(8 + i)) for one in fleet]
    changes = replay.requests_file(folder / "etcd-changes", puts)
    etcd_flags = (f"-field={etcd.WATCH_EVENTS}", "-keep-open")
    return await _median(replay.fanout(address, etcd.WATCH, watch, etcd.PUT, changes, *flags, *etcd_flags))


async def _event(address: str) -> bytes:
    """Return a watch message with one event, as the registry sends it."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        stream = stub.WatchEvents(WatchEventsRequest())
        await stream.read()
        await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=services(1)))
        message = await stream.read()
        stream.cancel()
    assert isinstance(message, WatchEventsResponse)
    assert len(message.events) == 1
    return message.SerializeToString()
