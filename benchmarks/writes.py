"""Registration and heartbeats, compared with a bare grpc.aio echo and with etcd's ``Put`` and ``LeaseKeepAlive``."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
from google.protobuf.message import Message

from benchmarks import etcd, replay
from benchmarks.fleet import services
from benchmarks.processes import process, registry
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import (
    BatchRegisterServicesRequest,
    HeartbeatRequest,
    KeepAliveRequest,
    RegisterServiceRequest,
)
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import Service

_SERVICE = "/ossa.registry.v1.RegistryService"
_FLEET = 10_000
_BATCH = 500
_LEASE_SECONDS = 600
_SECONDS = 3
_NAMES_PER_MESSAGE = 1_000
_LOAD = (f"-seconds={_SECONDS}", "-in-flight=64")
_ONCE = ("-once", "-in-flight=64")


class _Servers(NamedTuple):
    folder: Path
    registry: str
    echo: str
    etcd: str
    """Address; empty if etcd is not installed."""


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure each kind of write in alternating rounds."""
    if not replay.is_available():
        report.skipped("Writes", "Go, for the load generator")
        return
    await replay.build()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        (folder / "answer").write_bytes(next(services(1)).SerializeToString())
        port = await stack.enter_async_context(
            process(r"(\d+)", r"\d", "-m", "benchmarks.echo", str(folder / "answer"))
        )
        servers = _Servers(
            folder,
            await stack.enter_async_context(registry(folder)),
            f"127.0.0.1:{port}",
            await stack.enter_async_context(etcd.etcd()) if etcd.is_available() else "",
        )
        await _register(report, servers, args.rounds)
        await _batches(report, servers, args.rounds)
        await _heartbeats(report, servers, args.rounds)


async def _register(report: Report, servers: _Servers, rounds: int) -> None:
    report.title("RegisterService, 64 in flight, compared with a bare echo and etcd's Put with a lease")
    count = 5_000
    kinds: dict[str, list[float]] = {"new": [], "changed": [], "unchanged": []}
    bare_rates, etcd_rates = [], []
    for i in range(rounds):
        fleet = [_renamed(one, f"r{i}-{one.name}") for one in services(count)]
        changed = [_changed(one, "9.9.9") for one in fleet]
        same = _file(servers, "same", (RegisterServiceRequest(service=one) for one in changed))
        echo = await replay.unary(servers.echo, "/bare/Echo", same, *_LOAD)
        bare_rates.append(echo.rate)
        for kind, content in (("new", fleet), ("changed", changed)):
            requests = _file(servers, kind, (RegisterServiceRequest(service=one) for one in content))
            found = await replay.unary(servers.registry, f"{_SERVICE}/RegisterService", requests, *_ONCE)
            kinds[kind].append(found.rate)
        kinds["unchanged"].append(
            (await replay.unary(servers.registry, f"{_SERVICE}/RegisterService", same, *_LOAD)).rate
        )
        text = f"{bare_rates[-1]:,.0f} {' '.join(f'{rates[-1]:,.0f}' for rates in kinds.values())}"
        if servers.etcd:
            lease = i + 1
            await etcd.grant(servers.etcd, lease, _LEASE_SECONDS)
            puts = (etcd.put(one.name, one.SerializeToString(), lease) for one in fleet)
            requests = replay.requests_file(servers.folder / "puts", puts)
            etcd_rates.append((await replay.unary(servers.etcd, etcd.PUT, requests, *_ONCE)).rate)
            text += f" {etcd_rates[-1]:,.0f}"
        report.line("echo, new, changed, unchanged, etcd (calls/s)", text)
    for kind, rates in kinds.items():
        ratio = statistics.median(own / bare for own, bare in zip(rates, bare_rates, strict=True))
        report.at_least(f"{kind}: ratio to the bare echo, median", ratio, 0.5)
    if etcd_rates:
        ratio = statistics.median(own / other for own, other in zip(kinds["new"], etcd_rates, strict=True))
        report.line("new: ratio to etcd's Put, median", f"{ratio:.2f}")


async def _batches(report: Report, servers: _Servers, rounds: int) -> None:
    report.title(f"BatchRegisterServices of {_FLEET:,} services in batches of {_BATCH}")
    rates = []
    async with grpc.aio.insecure_channel(servers.registry) as channel:
        stub = RegistryServiceStub(channel)
        for i in range(rounds):
            fleet = [_renamed(one, f"b{i}-{one.name}") for one in services(_FLEET)]
            batches = [
                BatchRegisterServicesRequest(services=fleet[at : at + _BATCH]) for at in range(0, _FLEET, _BATCH)
            ]
            start = time.perf_counter()
            for batch in batches:
                answer = await stub.BatchRegisterServices(batch)
                assert all(result.HasField("service") for result in answer.results)
            rates.append(_FLEET / (time.perf_counter() - start))
    report.at_least("services per second, median", statistics.median(rates), 4_000, "/s")


async def _heartbeats(report: Report, servers: _Servers, rounds: int) -> None:
    report.title(f"Heartbeats of {_FLEET:,} services; etcd's LeaseKeepAlive renews one lease per message")
    names = [f"b0-{one.name}" for one in services(_FLEET)]
    groups = [names[at : at + _NAMES_PER_MESSAGE] for at in range(0, len(names), _NAMES_PER_MESSAGE)]
    one_by_one = _file(servers, "beats", (HeartbeatRequest(names=[name]) for name in names))
    batched = _file(servers, "batched", (HeartbeatRequest(names=group) for group in groups))
    streamed = _file(servers, "streamed", (KeepAliveRequest(names=group) for group in groups))
    leases = range(1_001, 1_001 + 1_000)
    if servers.etcd:
        for lease in leases:
            await etcd.grant(servers.etcd, lease, _LEASE_SECONDS)
    kept = replay.requests_file(servers.folder / "kept", map(etcd.keep_alive, leases))
    found: dict[str, list[float]] = {"one by one": [], "batched": [], "streamed": [], "etcd": []}
    for _ in range(rounds):
        beat = f"{_SERVICE}/Heartbeat"
        found["one by one"].append((await replay.unary(servers.registry, beat, one_by_one, *_LOAD)).rate)
        batch_load = (f"-seconds={_SECONDS}", "-in-flight=4")
        found["batched"].append(
            (await replay.unary(servers.registry, beat, batched, *batch_load)).rate * _NAMES_PER_MESSAGE
        )
        stream = await replay.stream(servers.registry, f"{_SERVICE}/KeepAlive", streamed, *batch_load)
        found["streamed"].append(stream.rate * _NAMES_PER_MESSAGE)
        if servers.etcd:
            found["etcd"].append((await replay.stream(servers.etcd, etcd.KEEP_ALIVE, kept, *_LOAD)).rate)
        report.line(
            f"{', '.join(kind for kind, rates in found.items() if rates)} (leases/s)",
            " ".join(f"{rates[-1]:,.0f}" for rates in found.values() if rates),
        )
    report.at_least("streamed, median", statistics.median(found["streamed"]), 100_000, "/s")
    if found["etcd"]:
        ratios = (own / other for own, other in zip(found["streamed"], found["etcd"], strict=True))
        report.line("streamed: ratio to etcd's LeaseKeepAlive, median", f"{statistics.median(ratios):.1f}")


def _file(servers: _Servers, name: str, requests: Iterable[Message]) -> Path:
    return replay.requests_file(servers.folder / name, (request.SerializeToString() for request in requests))


def _renamed(service: Service, name: str) -> Service:
    """Rename a service and remove its ``ttl``, so that it has a default lease instead of being permanent."""
    service.name = name
    service.ClearField("ttl")
    return service


def _changed(service: Service, version: str) -> Service:
    changed = Service()
    changed.CopyFrom(service)
    changed.version = version
    return changed
