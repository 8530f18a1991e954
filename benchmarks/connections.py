"""One connection an agent: memory, processor time and latency of heartbeats, and a restart of the server."""

import argparse
import asyncio
import json
import os
import resource
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import replay
from benchmarks.fleet import services
from benchmarks.processes import Served, cpu_seconds, served
from benchmarks.report import Report
from ossa.registry.v1.registry_service_pb2 import KeepAliveRequest, RegisterServiceRequest, WatchEventsRequest

_AGENTS: Final = 20_000
_WATCHERS: Final = 1_000
_LEASE_SECONDS: Final = 30
_HEARTBEAT_SECONDS: Final = 10
_MEASURED_SECONDS: Final = 30
_RESTART_SECONDS: Final = 60
"""After this time, the measurement of a restart ends with this result."""
_CONNECTIONS_PER_FILE: Final = 0.79
"""The server accepts connections for 80 % of the files that it may open."""


async def run(report: Report, _: argparse.Namespace) -> None:
    """Connect the agents, measure their heartbeats, and restart the server."""
    title = "One process, all agents from one address, default settings"
    if not replay.is_available():
        report.skipped(title, "Go, for the agents")
        return
    await replay.build()
    report.title(title)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    agents = min(_AGENTS, int(files * _CONNECTIONS_PER_FILE))
    limited = "" if agents == _AGENTS else f" (limited by {files:,} open files)"
    report.line("agents with a connection and a KeepAlive stream each", f"{agents:,}{limited}")
    report.line("of these with a watch", f"{_WATCHERS:,}")
    report.line("time between two heartbeats of an agent", f"{_HEARTBEAT_SECONDS} s")
    with tempfile.TemporaryDirectory(prefix="ossa-bench-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            async with served(folder) as registry:
                before = _memory(registry.pid)
                fleet = await stack.enter_async_context(_fleet(folder, registry.grpc, agents))
                setup = (await _answer(fleet))["seconds"]
                report.at_least("set-up: connection, registration, first heartbeat", agents / setup, 700, "/s")
                await _measure(report, registry, fleet, agents, before)
                _command(fleet, "restart")
            async with served(folder, f"--grpc.address={registry.grpc}"):
                try:
                    async with asyncio.timeout(_RESTART_SECONDS):
                        found = await _answer(fleet)
                except TimeoutError:  # some streams have not been answered yet
                    found = {"seconds": float(_RESTART_SECONDS)}
                report.at_most("restart: until all streams are answered again", found["seconds"], 15, "s")
                if "lost" in found:
                    report.at_most("leases lost", found["lost"], 0, "")


async def _measure(
    report: Report, registry: Served, fleet: asyncio.subprocess.Process, agents: int, before: float
) -> None:
    started, cpu = time.monotonic(), cpu_seconds(registry.pid)
    _command(fleet, f"measure {_MEASURED_SECONDS}")
    found = await _answer(fleet)
    cpu = cpu_seconds(registry.pid) - cpu
    load = 100 * cpu / (time.monotonic() - started)
    memory = (_memory(registry.pid) - before) / agents
    report.at_most("memory an agent: connection, stream and service", memory, 40, "KiB")
    report.at_most("processor time a heartbeat", 1e6 * cpu / found["beats"], 250, "us")
    report.line("load of the process", f"{load:.0f} % of a core")
    report.line("heartbeats answered, p50", f"{found['p50']:.1f} ms")
    report.at_most("heartbeats answered, p99", found["p99"], 50, "ms")
    report.at_most("heartbeats and watches that failed", found["failures"], 0, "")


@asynccontextmanager
async def _fleet(folder: Path, address: str, agents: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run agents, which print a line once all of them are set up."""
    fleet = list(services(agents))
    for service in fleet:
        service.ttl.FromSeconds(_LEASE_SECONDS)
        service.health_check.heartbeat.SetInParent()
    requests = {
        "registers": (RegisterServiceRequest(service=service) for service in fleet),
        "beats": (KeepAliveRequest(names=[service.name]) for service in fleet),
        "watch": [WatchEventsRequest()],
    }
    files = [
        f"-{name}={replay.requests_file(folder / name, (each.SerializeToString() for each in messages))}"
        for name, messages in requests.items()
    ]
    child = await asyncio.create_subprocess_exec(
        replay.BINARY,
        *("agents", f"-addr={address}", *files),
        *(f"-watchers={_WATCHERS}", f"-interval={_HEARTBEAT_SECONDS}s"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


def _command(fleet: asyncio.subprocess.Process, command: str) -> None:
    assert fleet.stdin is not None
    fleet.stdin.write(f"{command}\n".encode())


async def _answer(fleet: asyncio.subprocess.Process) -> dict[str, Any]:
    assert fleet.stdout is not None
    line = await fleet.stdout.readline()
    if not line:
        raise RuntimeError("the agents exited; their error is printed above")
    found: dict[str, Any] = json.loads(line)
    return found


def _memory(pid: int) -> float:
    """Return the resident memory of a process in KiB."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1024
