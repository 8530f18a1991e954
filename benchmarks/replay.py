"""Runs the compiled load generator ``benchmarks/replay``, which is built with Go."""

import asyncio
import json
import shutil
import struct
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

_SOURCE = Path(__file__).parent / "replay"
BINARY: Final = Path("build/replay").absolute()
"""The load generator, once it is built."""


Measured: TypeAlias = Coroutine[Any, Any, list[float]]


class Percentiles(NamedTuple):
    """Percentiles of times in milliseconds."""

    p50: float
    p99: float
    max: float


class Steady(NamedTuple):
    """Result of a steady rate of events."""

    delivery: Percentiles
    """From the scheduled time of an event to its arrival on a stream."""
    call: Percentiles
    """From the scheduled time of a trigger to its response."""
    messages: int
    """Received messages, each of which may contain several events."""


class Rates(NamedTuple):
    """Result of a load."""

    rate: float
    """Calls, or messages of a stream, per second."""
    p50: float
    """Median latency in milliseconds."""
    p99: float
    """99th percentile of the latency in milliseconds."""


def is_available() -> bool:
    """Return whether Go is installed. There is no Python fallback: the client would be the bottleneck."""
    return shutil.which("go") is not None


async def build() -> None:
    """Build the load generator. Go's build cache makes repeated builds cheap."""
    process = await asyncio.create_subprocess_exec("go", "build", "-o", str(BINARY), ".", cwd=_SOURCE)
    if await process.wait():
        raise RuntimeError("go build of benchmarks/replay failed")


def requests_file(path: Path, requests: Iterable[bytes]) -> Path:
    """Write requests to a file in the format of the load generator."""
    path.write_bytes(b"".join(struct.pack(">I", len(request)) + request for request in requests))
    return path


async def unary(address: str, method: str, requests: Path, *flags: str) -> Rates:
    """Call a method with several calls in flight, cycling through the requests. See ``replay unary -h`` for flags."""
    return await _rates("unary", address, method, requests, *flags)


async def stream(address: str, method: str, requests: Path, *flags: str) -> Rates:
    """Send messages on one stream, each of which receives one response."""
    return await _rates("stream", address, method, requests, *flags)


async def fanout(address: str, method: str, request: Path, trigger: str, triggers: Path, *flags: str) -> list[float]:
    """Open streams and send rounds of triggers.

    Returns:
        For each round, the milliseconds until the last stream received its last event.
    """
    found = await _run(
        *("fanout", f"-addr={address}", f"-method={method}", f"-requests={request}"),
        *(f"-trigger={trigger}", f"-triggers={triggers}", *flags),
    )
    last: list[float] = found["last"]
    return last


async def steady(
    address: str, method: str, request: Path, trigger: str, triggers: Path, *flags: str, marker: str
) -> Steady:
    """Open streams and send each trigger once, without waiting for earlier ones, at a steady rate of events.

    Args:
        address: HOST:PORT of the server.
        method: Method of the streams.
        request: File with the request of each stream.
        trigger: Method whose calls cause events.
        triggers: File with the requests of these calls.
        flags: Further flags; see ``replay steady -h``.
        marker: Text in each event, before its number in six digits.
    """
    found = await _run(
        *("steady", f"-addr={address}", f"-method={method}", f"-requests={request}", f"-marker={marker}"),
        *(f"-trigger={trigger}", f"-triggers={triggers}", *flags),
    )
    return Steady(Percentiles(**found["delivery"]), Percentiles(**found["call"]), found["messages"])


async def _rates(mode: str, address: str, method: str, requests: Path, *flags: str) -> Rates:
    found = await _run(mode, f"-addr={address}", f"-method={method}", f"-requests={requests}", *flags)
    if found["failed"]:
        raise RuntimeError(f"{found['failed']} calls of {method} failed: {found['error']}")
    return Rates(found["rate"], found["p50"], found["p99"])


async def _run(*arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        BINARY, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {errors.decode()}")
    found: dict[str, Any] = json.loads(output)
    return found
