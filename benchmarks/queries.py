"""The capability query over fleets of several sizes, idle and under changes; the point read; the same on etcd."""

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from benchmarks import etcd, replay
from benchmarks.fleet import MATCHES, query, services
from benchmarks.processes import process, registry
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import (
    BatchRegisterServicesRequest,
    GetServiceRequest,
    RegisterServiceRequest,
)
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

if TYPE_CHECKING:
    from ossa.registry.v1.service_pb2 import Service

_SERVICE = "/ossa.registry.v1.RegistryService"
_SIZES = (1_000, 10_000, 100_000)
_COMPARED_SIZE = 10_000
_CHANGES_PER_SECOND = 100
_LOAD = ("-seconds=3", "-in-flight=32")


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure all comparisons in alternating rounds."""
    if not replay.is_available():
        report.skipped("Queries", "Go, for the load generator")
        return
    await replay.build()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        registries = {}
        for size in _SIZES:
            (folder / str(size)).mkdir()
            registries[size] = await stack.enter_async_context(registry(folder / str(size)))
            await fill(registries[size], size)
        point = replay.requests_file(
            folder / "point",
            (GetServiceRequest(name=one.name).SerializeToString() for one in services(_SIZES[0])),
        )
        # Ten different queries, so that no single cached response dominates.
        queries = replay.requests_file(folder / "queries", (query(i).SerializeToString() for i in range(10)))
        (folder / "answer").write_bytes(next(services(1)).SerializeToString())
        port = await stack.enter_async_context(
            process(r"(\d+)", r"\d", "-m", "benchmarks.echo", str(folder / "answer"))
        )
        await _point(report, f"127.0.0.1:{port}", registries[_SIZES[0]], point, args.rounds)
        await _sizes(report, registries, queries, args.rounds)
        await _under_changes(report, registries[_COMPARED_SIZE], queries, args.rounds)
        if etcd.is_available():
            etcd_address = await stack.enter_async_context(etcd.etcd())
            await etcd.fill(etcd_address, ((one.name, one.SerializeToString()) for one in services(_COMPARED_SIZE)))
            await _compared_with_etcd(
                report, folder, registries[_COMPARED_SIZE], etcd_address, queries, point, args.rounds
            )


async def _point(report: Report, echo: str, address: str, point: Path, rounds: int) -> None:
    report.title("GetService, 32 in flight, compared with a bare echo of the same size")
    ratios = []
    for _ in range(rounds):
        bare = await replay.unary(echo, "/bare/Echo", point, *_LOAD)
        own = await replay.unary(address, f"{_SERVICE}/GetService", point, *_LOAD)
        ratios.append(own.rate / bare.rate)
        report.line("echo, registry (calls/s)", f"{bare.rate:,.0f} {own.rate:,.0f}")
    report.at_least("ratio to the bare echo, median", statistics.median(ratios), 0.9)


async def _sizes(report: Report, registries: dict[int, str], queries: Path, rounds: int) -> None:
    report.title(f"DiscoverServices, {MATCHES} services of {', '.join(f'{size:,}' for size in _SIZES)}")
    rates: dict[int, list[float]] = {size: [] for size in _SIZES}
    for _ in range(rounds):
        for size, address in registries.items():
            rates[size].append((await replay.unary(address, f"{_SERVICE}/DiscoverServices", queries, *_LOAD)).rate)
        report.line("calls/s", " ".join(f"{each[-1]:,.0f}" for each in rates.values()))
    costs = (small / large for small, large in zip(rates[_SIZES[0]], rates[_SIZES[-1]], strict=True))
    report.at_most("cost at 100,000 relative to 1,000, median", statistics.median(costs), 1.2, "")


async def _under_changes(report: Report, address: str, queries: Path, rounds: int) -> None:
    report.title(
        f"DiscoverServices, {MATCHES} services of {_COMPARED_SIZE:,}, under {_CHANGES_PER_SECOND} changes per second"
    )
    ratios = []
    for _ in range(rounds):
        idle = await replay.unary(address, f"{_SERVICE}/DiscoverServices", queries, *_LOAD)
        changing = asyncio.create_task(_change(address))
        busy = await replay.unary(address, f"{_SERVICE}/DiscoverServices", queries, *_LOAD)
        changing.cancel()
        await asyncio.wait([changing])
        ratios.append(busy.rate / idle.rate)
        report.line("idle, under changes (calls/s)", f"{idle.rate:,.0f} {busy.rate:,.0f}")
    report.at_least("ratio to the idle rate, median", statistics.median(ratios), 0.7)


async def _compared_with_etcd(
    report: Report, folder: Path, address: str, etcd_address: str, queries: Path, point: Path, rounds: int
) -> None:
    report.title(f"Comparison with etcd, {_COMPARED_SIZE:,} services")
    everything = replay.requests_file(folder / "everything", [etcd.everything()])
    key = replay.requests_file(folder / "key", (etcd.get(one.name) for one in services(_SIZES[0])))
    query_ratios, point_ratios = [], []
    for _ in range(rounds):
        # Counts only the transfer of all keys, not the filtering in the client.
        etcd_query = await replay.unary(etcd_address, etcd.RANGE, everything, "-seconds=3", "-in-flight=8")
        own_query = await replay.unary(address, f"{_SERVICE}/DiscoverServices", queries, *_LOAD)
        query_ratios.append(own_query.rate / etcd_query.rate)
        etcd_point = await replay.unary(etcd_address, etcd.RANGE, key, *_LOAD)
        own_point = await replay.unary(address, f"{_SERVICE}/GetService", point, *_LOAD)
        point_ratios.append(own_point.rate / etcd_point.rate)
        report.line(
            "capability query: etcd, registry; point read: etcd, registry",
            f"{etcd_query.rate:,.0f} {own_query.rate:,.0f}; {etcd_point.rate:,.0f} {own_point.rate:,.0f}",
        )
    report.at_least("capability query: ratio to etcd, median", statistics.median(query_ratios), 20)
    report.line("point read: ratio to etcd, median", f"{statistics.median(point_ratios):.2f}")


async def fill(address: str, count: int) -> None:
    """Register a fleet."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        batch: list[Service] = []
        for one in services(count):
            batch.append(one)
            if len(batch) == 500:
                await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=batch))
                batch.clear()


async def _change(address: str) -> None:
    """Change services spread over the whole fleet, including those that match the queries."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        fleet = list(services(_COMPARED_SIZE))
        start, i = time.perf_counter(), 0
        while True:
            service = fleet[i * 7919 % len(fleet)]
            service.version = f"2.{i}.0"
            await stub.RegisterService(RegisterServiceRequest(service=service))
            i += 1
            await asyncio.sleep(max(0.0, start + i / _CHANGES_PER_SECOND - time.perf_counter()))
