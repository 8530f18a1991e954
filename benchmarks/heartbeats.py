"""Heartbeats, compared with etcd's ``LeaseKeepAlive``."""

import argparse
import statistics
import tempfile
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import grpc
from google.protobuf.message import Message

from benchmarks import etcd, replay
from benchmarks.fleet import services
from benchmarks.processes import registry
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import (
    BatchRegisterServicesRequest,
    HeartbeatRequest,
    KeepAliveRequest,
    Lease,
)
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import Load

_SERVICE = "/ossa.registry.v1.RegistryService"
_FLEET = 10_000
_BATCH = 500
_LEASE_SECONDS = 600
_SECONDS = 3
_NAMES_PER_MESSAGE = 1_000
_LOAD = (f"-seconds={_SECONDS}", "-in-flight=64")


class _Servers(NamedTuple):
    folder: Path
    registry: str
    etcd: str
    """Address; empty if etcd is not installed."""


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure each kind of heartbeat in alternating rounds."""
    if not replay.is_available():
        report.skipped("Heartbeats", "Go, for the load generator")
        return
    await replay.build()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        servers = _Servers(
            folder,
            await stack.enter_async_context(registry(folder)),
            await stack.enter_async_context(etcd.etcd()) if etcd.is_available() else "",
        )
        names = await _register_fleet(servers.registry)
        await _heartbeats(report, servers, names, args.rounds)
        await _loads(report, servers, names, args.rounds)


async def _register_fleet(address: str) -> list[str]:
    """Register services with leases and return their names."""
    fleet = list(services(_FLEET))
    for one in fleet:
        one.ClearField("ttl")  # they would be permanent
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        for at in range(0, _FLEET, _BATCH):
            answer = await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=fleet[at : at + _BATCH]))
            assert all(result.HasField("service") for result in answer.results)
    return [one.name for one in fleet]


async def _heartbeats(report: Report, servers: _Servers, names: list[str], rounds: int) -> None:
    report.title(f"Heartbeats of {_FLEET:,} services; etcd's LeaseKeepAlive renews one lease per message")
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


async def _loads(report: Report, servers: _Servers, names: list[str], rounds: int) -> None:
    report.title(f"The same heartbeats of {_FLEET:,} services with and without a load")
    kinds = {"without": [Lease(name=name) for name in names]}
    kinds["with"] = [Lease(name=name, load=Load(in_flight=i % 9, capacity=8)) for i, name in enumerate(names)]
    files: dict[str, tuple[Path, Path]] = {}
    for kind, leases in kinds.items():
        groups = [leases[at : at + _NAMES_PER_MESSAGE] for at in range(0, len(leases), _NAMES_PER_MESSAGE)]
        files[kind] = (
            _file(servers, f"beats-{kind}", (HeartbeatRequest(leases=[lease]) for lease in leases)),
            _file(servers, f"streamed-{kind}", (KeepAliveRequest(leases=group) for group in groups)),
        )
    found: dict[str, list[float]] = {"one by one": [], "streamed": []}
    for _ in range(rounds):
        rates: dict[str, list[float]] = {"one by one": [], "streamed": []}
        for one_by_one, streamed in files.values():
            unary = await replay.unary(servers.registry, f"{_SERVICE}/Heartbeat", one_by_one, *_LOAD)
            rates["one by one"].append(unary.rate)
            batch_load = (f"-seconds={_SECONDS}", "-in-flight=4")
            stream = await replay.stream(servers.registry, f"{_SERVICE}/KeepAlive", streamed, *batch_load)
            rates["streamed"].append(stream.rate * _NAMES_PER_MESSAGE)
        for way, (without, with_load) in rates.items():
            found[way].append(with_load / without)
            report.line(f"{way}, without and with a load (leases/s)", f"{without:,.0f} {with_load:,.0f}")
    for way, ratios in found.items():
        report.at_least(f"{way}: rate with a load, median of the ratios", statistics.median(ratios), 0.9)


def _file(servers: _Servers, name: str, requests: Iterable[Message]) -> Path:
    return replay.requests_file(servers.folder / name, (request.SerializeToString() for request in requests))
