"""Events to many watchers, compared with a bare grpc.aio loop that writes the same bytes and with etcd's ``Watch``."""

import argparse
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import grpc

from benchmarks import etcd, replay
from benchmarks.fleet import services
from benchmarks.processes import process, registry
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import BatchRegisterServicesRequest, WatchEventsRequest, WatchEventsResponse
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import Service

_SERVICE = "/ossa.registry.v1.RegistryService"
_BURSTS_PER_ROUND = 5  # a single burst takes only milliseconds
_BATCH = 500


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure one event to many watchers, and many events to fewer watchers."""
    if not replay.is_available():
        report.skipped("Fan-out", "Go, for the load generator")
        return
    await replay.build()
    await _scenario(report, args.rounds, watchers=1_000, events=1)
    await _scenario(report, args.rounds, watchers=100, events=1_000)


async def _scenario(report: Report, rounds: int, *, watchers: int, events: int) -> None:
    report.title(f"{events:,} event{'s' * (events > 1)} to {watchers:,} watchers")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        address = await stack.enter_async_context(registry(folder))
        etcd_address = await stack.enter_async_context(etcd.etcd()) if etcd.is_available() else ""
        (folder / "event").write_bytes(await _event(address))
        arguments = ("-m", "benchmarks.bare_watch", str(folder / "event"), str(events))
        port = await stack.enter_async_context(process(r"(\d+)", r"\d", *arguments))
        watch = replay.requests_file(folder / "watch", [WatchEventsRequest().SerializeToString()])
        empty = replay.requests_file(folder / "empty", [b""] * _BURSTS_PER_ROUND)
        flags = (f"-watchers={watchers}", f"-events={events}", f"-rounds={_BURSTS_PER_ROUND}", "-connections=4")
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
