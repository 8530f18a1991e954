"""Health probes, compared with a bare aiohttp client: punctuality, cost, and effect on other calls."""

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration

from benchmarks.processes import Served, cpu_seconds, process, served
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import BatchRegisterServicesRequest, GetServiceRequest
from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from ossa.registry.v1.service_pb2 import Service

_ENDPOINTS = 5_000
_INTERVAL_MS = 5_000
_CALLS = 1_500
_CALL_INTERVAL_SECONDS = 0.005
_SECONDS = 5
_CONCURRENCY = 64
_SLOTS = 146
"""Of these, one owner, here the services without an owner, uses 64 at once."""
_PROBING = ("--health-check.enabled=true", f"--health-check.interval-ms={_INTERVAL_MS}")
# More probes than one process can send: the benchmark measures how many it sends.
_SATURATED = (
    "--health-check.enabled=true",
    "--health-check.interval-ms=200",
    "--health-check.timeout-ms=200",
    f"--health-check.concurrency={_SLOTS}",
    "--health-check.failure-threshold=100",
)


class _Sample(NamedTuple):
    """Counters of a registry's probes at one time."""

    at: float
    """Time of ``time.perf_counter``."""
    cpu: float
    """Processor time in seconds."""
    probes: float
    """Completed probes."""
    started: float
    """Started probes."""
    on_time: float
    """Probes that started at most 0.5 s late."""


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure punctuality and the effect on calls, then the rate."""
    rounds: int = args.rounds
    report.title(f"Probes of {_ENDPOINTS:,} HTTP endpoints every {_INTERVAL_MS / 1000:g} s by one process")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as name:
        folder = Path(name)
        async with process(r"([\d,]+)", r"\d", "-m", "benchmarks.endpoints", str(_ENDPOINTS)) as ports:
            await _effect_on_calls(report, folder, ports.split(","), rounds)
            await _rate(report, folder, ports, rounds)


async def _effect_on_calls(report: Report, folder: Path, ports: list[str], rounds: int) -> None:
    idle, during_bare, probing, probes, late, busy = [], [], [], 0.0, 0.0, []
    pace = len(ports) * 1000 / _INTERVAL_MS
    for i in range(rounds):
        async with served(folder) as quiet:
            if i == 0:
                await _register(quiet.grpc, ports)
            idle.append(await _p99(quiet.grpc))
            bare = asyncio.create_task(_bare(",".join(ports), seconds=15, pace=pace))
            await asyncio.sleep(2)
            during_bare.append(await _p99(quiet.grpc))
            await bare
        async with served(folder, *_PROBING) as one:
            await asyncio.sleep(_INTERVAL_MS / 1000)  # until every service has been probed once
            before = _sample(one)
            probing.append(await _p99(one.grpc))
            after = _sample(one)
            probes += after.started - before.started
            late += (after.started - before.started) - (after.on_time - before.on_time)
            busy.append((after.cpu - before.cpu) / (after.at - before.at))
    report.line("probes counted, CPU share of one core", f"{probes:,.0f} {statistics.median(busy):.0%}")
    report.at_most("probes started more than 0.5 s late", 100 * late / probes, 1, "%")
    medians = [statistics.median(values) for values in (idle, during_bare, probing)]
    report.line("GetService p99: idle, during bare GETs, probing (ms)", " ".join(f"{value:.2f}" for value in medians))
    # Agents, client and registry share the processors, so any process that sends the GETs slows down requests.
    report.line("  probing / idle", f"{medians[2] / medians[0]:.2f}")
    report.at_most("  probing / during as many GETs by another process", medians[2] / medians[1], 2, "")


async def _rate(report: Report, folder: Path, ports: str, rounds: int) -> None:
    ratios, by_wall, own_rates = [], [], []
    for _ in range(rounds):
        wall, core = await _bare(ports, seconds=_SECONDS)
        async with served(folder, *_SATURATED) as one:
            await asyncio.sleep(1)
            before = _sample(one)
            await asyncio.sleep(_SECONDS)
            after = _sample(one)
        probes = after.probes - before.probes
        own_rates.append(probes / (after.cpu - before.cpu))
        ratios.append(own_rates[-1] / core)
        by_wall.append(probes / (after.at - before.at) / wall)
        report.line("probes/s per core: bare aiohttp, registry", f"{core:,.0f} {own_rates[-1]:,.0f}")
    report.line("probes per second and core, median", f"{statistics.median(own_rates):,.0f}/s")
    report.line("ratio to the bare loop by wall-clock time, median", f"{statistics.median(by_wall):.2f}")
    report.at_least("ratio to the bare loop per core, median", statistics.median(ratios), 0.6)


async def _register(address: str, ports: list[str]) -> None:
    fleet = [
        Service(name=f"agent-{i}", endpoint=f"http://127.0.0.1:{port}", version="1.0.0", ttl=Duration())
        for i, port in enumerate(ports)
    ]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        for start in range(0, len(fleet), 500):
            await stub.BatchRegisterServices(BatchRegisterServicesRequest(services=fleet[start : start + 500]))


async def _p99(address: str) -> float:
    """Call ``GetService`` at a steady rate and return the 99th percentile of its latency in milliseconds."""
    latencies_ms = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = RegistryServiceStub(channel)
        request = GetServiceRequest(name="agent-0")
        for _ in range(_CALLS):
            start = time.perf_counter()
            await stub.GetService(request)
            latencies_ms.append((time.perf_counter() - start) * 1000)
            await asyncio.sleep(_CALL_INTERVAL_SECONDS)
    return statistics.quantiles(latencies_ms, n=100)[98]


async def _bare(ports: str, *, seconds: float, pace: float = 0) -> tuple[float, float]:
    """Run the bare loop, at ``pace`` requests per second if set.

    Returns:
        Its requests per second of wall-clock time and per second of processor time.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.bare_probes", str(seconds), ports, str(_CONCURRENCY), str(pace)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    wall, core = output.decode().split()
    return float(wall), float(core)


def _sample(one: Served) -> _Sample:
    with urllib.request.urlopen(f"http://{one.http}/metrics") as response:
        text = response.read().decode()

    def value(pattern: str) -> float:
        return sum(float(found) for found in re.findall(rf"^ossa_registry_{pattern} (\S+)$", text, re.MULTILINE))

    return _Sample(
        at=time.perf_counter(),
        cpu=sum(map(cpu_seconds, (one.pid, *_python_children(one.pid)))),
        probes=value(r'probes_total\{outcome="(?:ok|degraded)"\}'),
        started=value("probe_lateness_seconds_count"),
        on_time=value(r'probe_lateness_seconds_bucket\{le="0.5"\}'),
    )


def _python_children(pid: int) -> list[int]:
    """Return the process ids of the Python children; Redis is not one of them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [int(child) for child in children if b"python" in Path(f"/proc/{child}/cmdline").read_bytes()]
