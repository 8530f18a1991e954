"""The sizing guide: what agents, heartbeats, watches and changes cost, and two measured loads that check it."""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from textwrap import fill
from typing import Final, NamedTuple

from benchmarks.processes import Served, served
from benchmarks.report import Report
from benchmarks.rolling import resident_mib, running_fleet, stop_fleet
from benchmarks.rolling_fleet import HEARTBEAT_SECONDS

_PROCESS_CORES, _PROCESS_MIB = 0.01, 105.0
_READ_MS, _CHANGE_MS, _APPLY_MS, _DELIVERY_MS = 0.25, 0.65, 0.1, 0.045
_HEARTBEAT_MS, _LEASE_MS = 0.8, 0.012
_SERVICE_KB, _CONNECTION_KB, _WATCH_KB, _KEPT_CHANGE_KB = 2.0, 40.0, 20.0, 1.0
_REDIS_MIB, _REDIS_SERVICE_KB, _REDIS_CHANGE_KB = 15.0, 2.0, 1.0
_KEPT_CHANGES = 10_000
_MAX_UTILISATION: Final = 0.6
_MEAN_HEARTBEAT_SECONDS: Final = 0.9 * HEARTBEAT_SECONDS  # the fleet varies it between 0.8 and 1
_WARM_UP_SECONDS, _MEASURED_SECONDS = 5.0, 20.0


class Load(NamedTuple):
    """The load of a deployment."""

    services: int
    connections: int
    """Connections that send heartbeats."""
    heartbeat_seconds: float
    watches: int
    changes: float
    """Registrations, updates and removals per second."""
    reads: float = 0.0
    """Reads per second."""


class Estimate(NamedTuple):
    """The need of a deployment."""

    cores: float
    """Processor time of all workers, in cores."""
    workers: int
    worker_mib: float
    """Memory of each worker."""
    redis_mib: float

    @classmethod
    def of(cls, load: Load) -> "Estimate":
        """Return the need of a load."""
        messages = load.connections / load.heartbeat_seconds
        leases = load.services / load.heartbeat_seconds
        milliseconds = (
            messages * _HEARTBEAT_MS
            + max(0.0, leases - messages) * _LEASE_MS
            + load.changes * (_CHANGE_MS + load.watches * _DELIVERY_MS)
            + load.reads * _READ_MS
        )
        workers = 1
        while True:
            # Each worker applies every change.
            cores = milliseconds / 1000 + workers * _PROCESS_CORES + (workers - 1) * load.changes * _APPLY_MS / 1000
            if cores <= workers * _MAX_UTILISATION:
                break
            workers += 1
        clients = (load.connections * _CONNECTION_KB + load.watches * (_WATCH_KB + _CONNECTION_KB)) / workers
        kept = min(_KEPT_CHANGES, load.services + load.changes * 3600)
        return cls(
            cores,
            workers,
            _PROCESS_MIB + (load.services * _SERVICE_KB + clients + kept * _KEPT_CHANGE_KB) / 1024,
            _REDIS_MIB + (load.services * _REDIS_SERVICE_KB + kept * _REDIS_CHANGE_KB) / 1024,
        )


_EXAMPLES: Final = (
    ("1,000 agents with a connection each", Load(1_000, 1_000, 10, 50, 2, 200)),
    ("10,000 agents with a connection each", Load(10_000, 10_000, 10, 200, 5, 500)),
    ("20,000 agents with a connection each, a tenth of which watch", Load(20_000, 20_000, 10, 2_000, 1, 500)),
    ("20,000 agents behind 20 gateways", Load(20_000, 20, 10, 100, 20, 1_000)),
    ("100,000 agents behind 100 gateways", Load(100_000, 100, 10, 500, 20, 2_000)),
)
_POINTS: Final = (
    (
        "2,000 agents with a connection each, 200 watches, 2 changes/s",
        Load(2_000, 2_000, _MEAN_HEARTBEAT_SECONDS, 200, 2),
    ),
    ("10,000 agents behind 10 gateways, 500 watches, 10 changes/s", Load(10_000, 10, _MEAN_HEARTBEAT_SECONDS, 500, 10)),
)


def guide() -> str:
    """Return the sizing guide in Markdown."""
    rules = (
        f"Planning values for one core of this machine, rounded up. Plan for at most {_MAX_UTILISATION:.0%} of the "
        "core of each worker, and one core for Redis. [sizing](#sizing) compares two loads with them."
    )
    change = (
        f"| change | {_CHANGE_MS:g} ms, and {_APPLY_MS:g} ms in each other worker "
        f"| {_KEPT_CHANGE_KB:g} KB, for up to {_KEPT_CHANGES:,} changes | {_REDIS_CHANGE_KB:g} KB, for as many |"
    )
    lines = [
        "## Sizing guide",
        "",
        fill(rules, 120),
        "",
        "| | CPU time of a worker | Memory of each worker | Memory of Redis |",
        "|---|---:|---:|---:|",
        f"| process | {_PROCESS_CORES:.0%} of a core | {_PROCESS_MIB:.0f} MiB | {_REDIS_MIB:.0f} MiB |",
        f"| service | | {_SERVICE_KB:g} KB | {_REDIS_SERVICE_KB:g} KB |",
        f"| connection | | {_CONNECTION_KB:g} KB, in one worker | |",
        f"| heartbeat of one agent | {_HEARTBEAT_MS:g} ms | | |",
        f"| each further lease in a heartbeat | {_LEASE_MS:g} ms | | |",
        f"| read | {_READ_MS:g} ms | | |",
        change,
        f"| watch | | {_WATCH_KB:g} KB, in one worker | |",
        f"| delivery of a change to a watch | {_DELIVERY_MS:g} ms | | |",
        "",
        "Examples, with a heartbeat every 10 s:",
        "",
        "| Load | Watches | Changes/s | Reads/s | Cores | Workers | Memory of each | Memory of Redis |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, load in _EXAMPLES:
        need = Estimate.of(load)
        lines.append(
            f"| {name} | {load.watches:,} | {load.changes:g} | {load.reads:,.0f} | {need.cores:.2f} | {need.workers} "
            f"| {need.worker_mib:,.0f} MiB | {need.redis_mib:,.0f} MiB |"
        )
    return "\n".join(lines)


async def run(report: Report, _: argparse.Namespace) -> None:
    """Compare two loads with the guide."""
    for name, load in _POINTS:
        report.title(name)
        await _compare(report, load)


async def _compare(report: Report, load: Load) -> None:
    need = Estimate.of(load)
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as folder:
        async with (
            served(Path(folder), "--log.requests=off") as registry,
            running_fleet(registry.grpc, load.services, load.connections, load.watches, 1 / load.changes) as fleet,
        ):
            await asyncio.sleep(_WARM_UP_SECONDS)
            before, started = _cpu_seconds(registry.pid), time.monotonic()
            await asyncio.sleep(_MEASURED_SECONDS)
            cores = (_cpu_seconds(registry.pid) - before) / (time.monotonic() - started)
            worker, redis = resident_mib(registry.pid), resident_mib(_redis_of(registry))
            await stop_fleet(fleet)
    for what, measured, estimated, unit in (
        ("CPU of the worker", 100 * cores, 100 * need.cores, "% of a core"),
        ("memory of the worker", worker, need.worker_mib, "MiB"),
        ("memory of Redis", redis, need.redis_mib, "MiB"),
    ):
        report.line(f"{what}: estimate", f"{estimated:,.0f} {unit}")
        report.line(f"{what}: measured", f"{measured:,.0f} {unit}")
        report.at_most(f"{what}: measured relative to the estimate", measured / estimated, 1.1, "")


def _cpu_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _redis_of(registry: Served) -> int:
    """Return the process id of the embedded Redis."""
    for status in Path("/proc").glob("[0-9]*/comm"):
        pid = int(status.parent.name)
        try:
            command = (status.parent / "cmdline").read_bytes()
            parent = int((status.parent / "stat").read_text(encoding="ascii").rpartition(") ")[2].split()[1])
        except OSError:  # the process has exited
            continue
        if b"redis-server" in command.split(b"\0")[0] and parent == registry.pid:
            return pid
    raise RuntimeError("the registry has no embedded Redis")
