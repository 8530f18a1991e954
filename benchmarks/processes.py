"""Servers under test, as processes of their own."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple


class Served(NamedTuple):
    """A registry that serves."""

    grpc: str
    http: str
    pid: int


@asynccontextmanager
async def registry(folder: Path, *flags: str) -> AsyncIterator[str]:
    """Runs a registry with its data below ``folder``; gives its gRPC address once it serves."""
    async with served(folder, *flags) as one:
        yield one.grpc


@asynccontextmanager
async def served(folder: Path, *flags: str) -> AsyncIterator[Served]:
    """The same, with all that is known of it. Nothing is probed unless a flag says so."""
    arguments = (
        "--grpc.address=127.0.0.1:0",
        "--http.address=127.0.0.1:0",
        f"--data-dir={folder / 'data'}",
        "--log.format=json",
        "--health-check.enabled=false",
        *flags,
    )
    async with _child("ossa-registry serves", "-m", "registry_server", *arguments) as (printed, pid):
        found = dict(re.findall(r'"event": "(gRPC|HTTP) listens", "address": "([^"]+)"', printed))
        yield Served(found["gRPC"], found["HTTP"], pid)


@asynccontextmanager
async def process(wanted: str, ready: str, *arguments: str) -> AsyncIterator[str]:
    """Runs a Python process until it has printed a line with ``ready``; gives what ``wanted`` matches in its lines."""
    async with _child(ready, *arguments) as (printed, _):
        found = re.search(wanted, printed)
        assert found is not None
        yield found[1]


@asynccontextmanager
async def _child(ready: str, *arguments: str) -> AsyncIterator[tuple[str, int]]:
    """Runs a Python process; gives what it printed until a line with ``ready``, and its id."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,  # a line may be long
    )
    assert child.stdout is not None
    try:
        printed = ""
        while not re.search(ready, printed):
            line = await child.stdout.readline()
            if not line:
                raise RuntimeError(f"{arguments} ended before it was ready: {printed}")
            printed += line.decode()
        reading = asyncio.create_task(child.stdout.read())  # or it stands still once the pipe is full
        yield printed, child.pid
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            await child.wait()
    await reading
