"""Rolling restarts of two workers under heartbeats and watchers, and the stability of their memory.

Memory is measured while no worker restarts, because frequent restarts would hide a leak. The first minute, in which
caches fill, is excluded. The load is far below the capacity of a core, so that other work can run at the same time.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import Served, served
from benchmarks.report import Report

_SERVICES, _STREAMS, _WATCHERS = 10_000, 10, 1_000
_RESTARTS: Final = 5
_PAUSE_SECONDS: Final = 15.0
_SAMPLE_INTERVAL_SECONDS: Final = 5.0
_WARM_UP_SECONDS: Final = 60.0


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measure memory for ``args.minutes``, then restart the workers repeatedly."""
    title = f"Two workers, {_SERVICES:,} leases of 30 s, {_WATCHERS:,} watchers"
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        async with (
            served(Path(folder), "--workers=2", "--log.requests=off") as registry,
            running_fleet(registry.grpc, _SERVICES, _STREAMS, _WATCHERS) as fleet,
        ):
            report.title(f"{title}: memory over {args.minutes:g} minutes")
            await _memory(report, registry, args.minutes * 60)
            report.title(f"{title}: {_RESTARTS} rolling restarts")
            await _restarts(report, registry)
            counters = await stop_fleet(fleet)
    report.line("leases renewed", f"{counters['renewed']:,}")
    report.line("changes received by watchers", f"{counters['events']:,}")
    report.line("UNAVAILABLE calls and streams, retried", f"{sum(counters['unavailable'].values()):,}")
    report.line("calls and streams reset by gRPC during a stop", f"{counters['reset']:,}")
    report.at_most("leases lost", counters["lost"], 0, "")
    report.at_most("changes missed or received twice by a watcher", counters["missed_or_repeated"], 0, "")
    report.at_least("watchers that resumed from their cursor", counters["resumed"], _WATCHERS)


async def _memory(report: Report, registry: Served, seconds: float) -> None:
    started, cpu_before = time.monotonic(), _cpu_seconds(registry)
    samples: dict[int, list[float]] = {pid: [] for pid in workers_of(registry.pid)}
    while (passed := time.monotonic() - started) < seconds:
        await asyncio.sleep(_SAMPLE_INTERVAL_SECONDS)
        if passed > min(_WARM_UP_SECONDS, seconds / 2):
            for pid, sizes in samples.items():
                sizes.append(resident_mib(pid))
    for number, sizes in enumerate(samples.values(), 1):
        step = max(1, len(sizes) // 10)
        report.line(f"worker {number}: MiB over time", " ".join(f"{size:.1f}" for size in sizes[::step]))
        middle = statistics.median(sizes)
        deviation = max(abs(size - middle) for size in sizes) / middle
        report.at_most(
            f"worker {number}: largest deviation from its median of {middle:.1f} MiB", 100 * deviation, 5, "%"
        )
    load = (_cpu_seconds(registry) - cpu_before) / (time.monotonic() - started)
    report.line("CPU of both workers", f"{100 * load:.0f} % of a core")


async def _restarts(report: Report, registry: Served) -> None:
    seconds = []
    for _ in range(_RESTARTS):
        before, started = set(workers_of(registry.pid)), time.monotonic()
        os.kill(registry.pid, signal.SIGUSR2)
        while before & (now := set(workers_of(registry.pid))) or len(now) < 2:  # noqa: ASYNC110 - /proc has no events
            await asyncio.sleep(0.05)
        seconds.append(time.monotonic() - started)
        await asyncio.sleep(_PAUSE_SECONDS)
    report.line("time until both workers were replaced, median", f"{statistics.median(seconds):.1f} s")


@asynccontextmanager
async def running_fleet(
    address: str, services: int, streams: int, watchers: int, changes_every: float = 2.0
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``benchmarks.rolling_fleet`` as a process, and yield it once its watches are open."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.rolling_fleet", address),
        *map(str, (services, streams, watchers, changes_every)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        if await child.stdout.readline() != b"ready\n":
            raise RuntimeError("benchmarks.rolling_fleet exited before it was ready")
        yield child
    finally:
        if child.returncode is None:
            try:
                async with asyncio.timeout(60):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()


async def stop_fleet(fleet: asyncio.subprocess.Process) -> dict[str, Any]:
    """Stop a fleet once its watchers have every change, and return its counters."""
    assert fleet.stdin is not None
    assert fleet.stdout is not None
    fleet.stdin.write(b"\n")
    counters: dict[str, Any] = json.loads(await fleet.stdout.readline())
    return counters


def workers_of(supervisor: int) -> list[int]:
    """Return the process ids of the running workers."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [int(pid) for pid in children if b"workers.worker" in _read(pid, "cmdline")]


def _read(pid: int | str, file: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes()
    except OSError:  # the process has exited
        return b""


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    return int(_read(pid, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _cpu_seconds(registry: Served) -> float:
    ticks = 0
    for pid in workers_of(registry.pid):
        user, system = _read(pid, "stat").rpartition(b") ")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")
