"""Runs the measured servers as separate processes."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple


class Served(NamedTuple):
    """Addresses and process id of a running registry."""

    grpc: str
    http: str
    pid: int


@asynccontextmanager
async def registry(folder: Path, *flags: str) -> AsyncIterator[str]:
    """Run a registry with its data below ``folder`` and yield its gRPC address once it serves."""
    async with served(folder, *flags) as one:
        yield one.grpc


@asynccontextmanager
async def served(folder: Path, *flags: str, tree: Path | None = None) -> AsyncIterator[Served]:
    """Run a registry and yield its addresses and process id. Probing is disabled unless a flag enables it.

    Args:
        folder: Contains the registry's data.
        flags: Further settings.
        tree: Source tree to run; by default the installed one.
    """
    arguments = (
        "--grpc.address=127.0.0.1:0",
        "--http.address=127.0.0.1:0",
        f"--data-dir={folder / 'data'}",
        "--log.format=json",
        "--health-check.enabled=false",
        *flags,
    )
    async with _child("ossa-registry serves", "-m", "registry_server", *arguments, tree=tree) as (printed, pid):
        found = dict(re.findall(r'"event": "(gRPC|HTTP) listening", "address": "([^"]+)"', printed))
        yield Served(found["gRPC"], found["HTTP"], pid)


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process, without its children, has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def process(pattern: str, ready: str, *arguments: str) -> AsyncIterator[str]:
    """Run a Python process, wait for a line that matches ``ready``, and yield the first group of ``pattern``."""
    async with _child(ready, *arguments) as (printed, _):
        found = re.search(pattern, printed)
        assert found is not None
        yield found[1]


@asynccontextmanager
async def _child(ready: str, *arguments: str, tree: Path | None = None) -> AsyncIterator[tuple[str, int]]:
    """Run a Python process and yield its output up to a line that matches ``ready``, and its process id."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,  # log lines can be long
        cwd=tree,  # the first place where Python looks for modules, before the installed ones
        env=None if tree is None else {**os.environ, "PYTHONPATH": str(tree / "generated")},
    )
    assert child.stdout is not None
    try:
        printed = ""
        while not re.search(ready, printed):
            line = await child.stdout.readline()
            if not line:
                raise RuntimeError(f"{arguments} exited before it was ready: {printed}")
            printed += line.decode()
        reading = asyncio.create_task(child.stdout.read())  # otherwise the child blocks once the pipe is full
        yield printed, child.pid
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            await child.wait()
    await reading
