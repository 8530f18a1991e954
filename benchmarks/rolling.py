"""Rolling restarts of two workers under agents that beat and watchers, and whether their memory stays flat.

Memory is judged while nobody is restarted: a worker that is restarted every minute would look flat whatever it leaked.
Its first minute does not count, in which caches fill. The load is far below what a core does, so that it may run beside
other work for as long as it takes.
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
_BETWEEN: Final = 15.0
_SAMPLE_EVERY: Final = 5.0
_FIRST: Final = 60.0
"""Seconds."""


async def run(report: Report, args: argparse.Namespace) -> None:
    """Measures memory for so many minutes, then restarts."""
    title = f"Two workers, {_SERVICES:,} leases of 30 s, {_WATCHERS:,} watchers"
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        async with (
            served(Path(folder), "--workers=2", "--log.requests=off") as registry,
            _fleet(registry) as fleet,
        ):
            report.title(f"{title}: memory over {args.minutes:g} minutes")
            await _memory(report, registry, args.minutes * 60)
            report.title(f"{title}: {_RESTARTS} rolling restarts")
            await _restarts(report, registry)
            assert fleet.stdin is not None
            fleet.stdin.write(b"\n")
            assert fleet.stdout is not None
            found: dict[str, Any] = json.loads(await fleet.stdout.readline())
    report.line("leases renewed", f"{found['beats']:,}")
    report.line("changes told to watchers", f"{found['events']:,}")
    report.line("calls and streams that were UNAVAILABLE, and tried again", f"{sum(found['refused'].values()):,}")
    report.line("those that gRPC reset in the moment of a stop", f"{found['reset']:,}")
    report.at_most("leases lost", found["lost"], 0, "")
    report.at_most("changes that a watcher missed, or was told twice", found["holes"], 0, "")
    report.at_least("watchers that went on at their cursor", found["resumed"], _WATCHERS)


async def _memory(report: Report, registry: Served, seconds: float) -> None:
    begun, used = time.monotonic(), _seconds_used(registry)
    samples: dict[int, list[float]] = {pid: [] for pid in workers_of(registry.pid)}
    while (passed := time.monotonic() - begun) < seconds:
        await asyncio.sleep(_SAMPLE_EVERY)
        if passed > min(_FIRST, seconds / 2):
            for pid, sizes in samples.items():
                sizes.append(_rss(pid))
    for number, sizes in enumerate(samples.values(), 1):
        step = max(1, len(sizes) // 10)
        report.line(f"worker {number}: MiB over time", " ".join(f"{size:.1f}" for size in sizes[::step]))
        middle = statistics.median(sizes)
        farthest = max(abs(size - middle) for size in sizes) / middle
        report.at_most(f"worker {number}: farthest from its median of {middle:.1f} MiB", 100 * farthest, 5, "%")
    load = (_seconds_used(registry) - used) / (time.monotonic() - begun)
    report.line("CPU of both workers", f"{100 * load:.0f} % of a core")


async def _restarts(report: Report, registry: Served) -> None:
    seconds = []
    for _ in range(_RESTARTS):
        before, begun = set(workers_of(registry.pid)), time.monotonic()
        os.kill(registry.pid, signal.SIGUSR2)
        while before & (now := set(workers_of(registry.pid))) or len(now) < 2:  # noqa: ASYNC110 - /proc has no events
            await asyncio.sleep(0.05)
        seconds.append(time.monotonic() - begun)
        await asyncio.sleep(_BETWEEN)
    report.line("until both workers were others, median", f"{statistics.median(seconds):.1f} s")


@asynccontextmanager
async def _fleet(registry: Served) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.rolling_fleet", registry.grpc),
        *map(str, (_SERVICES, _STREAMS, _WATCHERS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        if await child.stdout.readline() != b"ready\n":
            raise RuntimeError("the fleet did not come up")
        yield child
    finally:
        if child.returncode is None:
            try:
                async with asyncio.timeout(60):
                    await child.wait()
            except TimeoutError:
                child.kill()
                await child.wait()


def workers_of(supervisor: int) -> list[int]:
    """The workers that run now."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [int(pid) for pid in children if b"workers.worker" in _read(pid, "cmdline")]


def _read(pid: int | str, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:  # it has just ended
        return b""


def _rss(pid: int) -> float:
    return int(_read(pid, "statm").split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _seconds_used(registry: Served) -> float:
    ticks = 0
    for pid in workers_of(registry.pid):
        user, system = _read(pid, "stat").rpartition(b") ")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")
