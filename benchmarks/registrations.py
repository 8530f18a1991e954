"""Registrations, compared with an earlier version, a bare grpc.aio echo and etcd's ``Put``."""

import argparse
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import grpc

from benchmarks import etcd, previous, replay
from benchmarks.fleet import services
from benchmarks.processes import Served, cpu_seconds, process, served
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import (
    BatchRegisterServicesRequest,
    DiscoverServicesRequest,
    RegisterServiceRequest,
)
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import Service, ServiceFilter

_REGISTER = "/ossa.registry.v1.RegistryService/RegisterService"
_REGISTER_BATCH = "/ossa.registry.v1.RegistryService/BatchRegisterServices"
_FLEET = 10_000
_BATCH = 500
_BATCHES_IN_FLIGHT = 2
_CALLS = 5_000
_LEASE_SECONDS = 600
_LOAD = ("-seconds=3", "-in-flight=64")
_ONCE = ("-once", "-in-flight=64")
_KINDS = ("new", "changed", "unchanged")
_MICROSECONDS = 1e6


class _Cost(NamedTuple):
    rate: float
    """Services per second."""
    cpu: float
    """Processor time of the server for a service, in microseconds."""


class _Servers(NamedTuple):
    folder: Path
    registry: Served
    previous: Served | None
    """``None`` if this checkout does not have its commit."""
    echo: str
    etcd: str
    """Address; empty if etcd is not installed."""


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure each kind of registration in alternating rounds."""
    if not replay.is_available():
        report.skipped("Registrations", "Go, for the load generator")
        return
    await replay.build()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ossa-bench-")))
        (folder / "answer").write_bytes(next(services(1)).SerializeToString())
        port = await stack.enter_async_context(
            process(r"(\d+)", r"\d", "-m", "benchmarks.echo", str(folder / "answer"))
        )
        comparable = await previous.is_available()
        servers = _Servers(
            folder,
            await stack.enter_async_context(served(folder / "registry")),
            await stack.enter_async_context(previous.served_previous(folder / "previous")) if comparable else None,
            f"127.0.0.1:{port}",
            await stack.enter_async_context(etcd.etcd()) if etcd.is_available() else "",
        )
        if not comparable:
            report.skipped("Comparison with the earlier version", f"commit {previous.BASELINE[:7]} of the history")
        await _one_by_one(report, servers, args.rounds)
        await _batches(report, servers, args.rounds)


async def _one_by_one(report: Report, servers: _Servers, rounds: int) -> None:
    report.title("RegisterService, 64 in flight")
    ours: dict[str, list[_Cost]] = {kind: [] for kind in _KINDS}
    earlier: dict[str, list[_Cost]] = {kind: [] for kind in _KINDS}
    bare_rates, etcd_rates = [], []
    for i in range(rounds):
        fleet = [_renamed(one, f"r{i}-{one.name}") for one in services(_CALLS)]
        changed = [_changed(one, "9.9.9") for one in fleet]
        files = {
            kind: _file(servers, kind, content) for kind, content in zip(_KINDS, (fleet, changed, changed), strict=True)
        }
        bare_rates.append((await replay.unary(servers.echo, "/bare/Echo", files["new"], *_LOAD)).rate)
        for kind, requests in files.items():
            ours[kind].append(await _register(servers.registry, requests))
            if servers.previous is not None:
                earlier[kind].append(await _register(servers.previous, requests))
        text = f"{bare_rates[-1]:,.0f} {_rates(ours)}"
        if servers.etcd:
            lease = i + 1
            await etcd.grant(servers.etcd, lease, _LEASE_SECONDS)
            puts = (etcd.put(one.name, one.SerializeToString(), lease) for one in fleet)
            requests = replay.requests_file(servers.folder / "puts", puts)
            etcd_rates.append((await replay.unary(servers.etcd, etcd.PUT, requests, *_ONCE)).rate)
            text += f" {etcd_rates[-1]:,.0f}"
        report.line("echo, new, changed, unchanged, etcd (calls/s)", text)
        if servers.previous is not None:
            report.line("earlier version: new, changed, unchanged (calls/s)", _rates(earlier))
    for kind, costs in ours.items():
        rates = [each.rate for each in costs]
        report.at_least(f"{kind}: ratio to the bare echo, median", _ratio(rates, bare_rates), 0.5)
        if servers.previous is not None:
            _compare_cpu(report, kind, costs, earlier[kind])
    if etcd_rates:
        ratio = _ratio([each.rate for each in ours["new"]], etcd_rates)
        report.line("new: ratio to etcd's Put, median", f"{ratio:.2f}")


async def _register(server: Served, requests: Path) -> _Cost:
    """Send each request once."""
    before = cpu_seconds(server.pid)
    found = await replay.unary(server.grpc, _REGISTER, requests, *_ONCE)
    return _Cost(found.rate, (cpu_seconds(server.pid) - before) / _CALLS * _MICROSECONDS)


async def _batches(report: Report, servers: _Servers, rounds: int) -> None:
    report.title(f"BatchRegisterServices of {_FLEET:,} services, {_BATCHES_IN_FLIGHT} batches of {_BATCH} in flight")
    ours, earlier = [], []
    for i in range(rounds):
        fleet = [_renamed(one, f"b{i}-{one.name}") for one in services(_FLEET)]
        batches = (BatchRegisterServicesRequest(services=fleet[at : at + _BATCH]) for at in range(0, _FLEET, _BATCH))
        requests = replay.requests_file(servers.folder / "batches", (one.SerializeToString() for one in batches))
        ours.append(await _register_batches(servers.registry, requests))
        if servers.previous is not None:
            earlier.append(await _register_batches(servers.previous, requests))
    await _verify(servers.registry, f"b{rounds - 1}-")
    rates = [each.rate for each in ours]
    report.at_least("services per second, median", statistics.median(rates), 4_000, "/s")
    if servers.previous is not None:
        ratio = _ratio(rates, [each.rate for each in earlier])
        report.at_least("rate: ratio to the earlier version, median", ratio, 1.6)
        report.line("CPU of the server for a service", _cpu(ours, earlier))


async def _register_batches(server: Served, requests: Path) -> _Cost:
    before = cpu_seconds(server.pid)
    found = await replay.unary(server.grpc, _REGISTER_BATCH, requests, "-once", f"-in-flight={_BATCHES_IN_FLIGHT}")
    return _Cost(found.rate * _BATCH, (cpu_seconds(server.pid) - before) / _FLEET * _MICROSECONDS)


async def _verify(server: Served, prefix: str) -> None:
    """Check that a fleet was registered: the load generator does not read the results."""
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        request = DiscoverServicesRequest(filter=ServiceFilter(name_pattern=f"^{prefix}"), page_size=1)
        found = await RegistryServiceStub(channel).DiscoverServices(request)
    assert found.total_size == _FLEET, found.total_size


def _compare_cpu(report: Report, kind: str, ours: Sequence[_Cost], earlier: Sequence[_Cost]) -> None:
    ratio = _ratio([each.cpu for each in ours], [each.cpu for each in earlier])
    report.line(f"{kind}: CPU of the server for a call", _cpu(ours, earlier))
    report.at_most(f"{kind}: CPU, ratio to the earlier version, median", ratio, 0.6, "")


def _cpu(ours: Iterable[_Cost], earlier: Iterable[_Cost]) -> str:
    now, then = (statistics.median(each.cpu for each in costs) for costs in (ours, earlier))
    return f"{then:.0f} us, now {now:.0f} us"


def _rates(found: dict[str, list[_Cost]]) -> str:
    return " ".join(f"{costs[-1].rate:,.0f}" for costs in found.values())


def _ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of the rounds."""
    return statistics.median(own / other for own, other in zip(ours, others, strict=True))


def _file(servers: _Servers, name: str, content: Iterable[Service]) -> Path:
    requests = (RegisterServiceRequest(service=one).SerializeToString() for one in content)
    return replay.requests_file(servers.folder / name, requests)


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
