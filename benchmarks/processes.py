"""Servers under test, as processes of their own."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


@asynccontextmanager
async def registry(folder: Path, *flags: str) -> AsyncIterator[str]:
    """Runs a registry with its data below ``folder``; gives its gRPC address once it serves."""
    arguments = ("--grpc.address=127.0.0.1:0", "--http.address=127.0.0.1:0", f"--data-dir={folder / 'data'}", *flags)
    found, ready = r'"event": "gRPC listens", "address": "([^"]+)"', "ossa-registry serves"
    async with process(found, ready, "-m", "registry_server", "--log.format=json", *arguments) as address:
        yield address


@asynccontextmanager
async def process(wanted: str, ready: str, *arguments: str) -> AsyncIterator[str]:
    """Runs a Python process until it has printed a line with ``ready``; gives what ``wanted`` matches in its lines."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert child.stdout is not None
    try:
        printed = ""
        while not re.search(ready, printed):
            line = await child.stdout.readline()
            if not line:
                raise RuntimeError(f"{arguments} ended before it was ready: {printed}")
            printed += line.decode()
        found = re.search(wanted, printed)
        assert found is not None
        reading = asyncio.create_task(child.stdout.read())  # or it stands still once the pipe is full
        yield found[1]
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            await child.wait()
    await reading
