"""The compiled load generator ``benchmarks/replay``, which is built once with Go."""

import asyncio
import json
import shutil
import struct
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

_SOURCE = Path(__file__).parent / "replay"
_BINARY = Path("build/replay").absolute()


Measured: TypeAlias = Coroutine[Any, Any, list[float]]


class Rates(NamedTuple):
    """What came of a load."""

    rate: float
    """Calls, or messages of a stream, a second."""
    p50: float
    """Milliseconds."""
    p99: float
    """Milliseconds."""


def is_available() -> bool:
    """Whether there is a Go to build it with; without, a Python client would be what is measured."""
    return shutil.which("go") is not None


async def build() -> None:
    """Builds it; the build cache makes that cheap."""
    process = await asyncio.create_subprocess_exec("go", "build", "-o", str(_BINARY), ".", cwd=_SOURCE)
    if await process.wait():
        raise RuntimeError("the load generator does not build")


def requests_file(path: Path, requests: Iterable[bytes]) -> Path:
    """Writes requests to a file as it reads them."""
    path.write_bytes(b"".join(struct.pack(">I", len(request)) + request for request in requests))
    return path


async def unary(address: str, method: str, requests: Path, *flags: str) -> Rates:
    """Calls a method with one request after the other, several calls at once; see ``replay -h`` for flags."""
    return await _rates("unary", address, method, requests, *flags)


async def stream(address: str, method: str, requests: Path, *flags: str) -> Rates:
    """Sends one message after the other on one stream, each answered by one."""
    return await _rates("stream", address, method, requests, *flags)


async def fanout(address: str, method: str, request: Path, trigger: str, triggers: Path, *flags: str) -> list[float]:
    """Opens streams and makes rounds of triggers; gives for each the ms until the last stream had its last event."""
    found = await _run(
        *("fanout", f"-addr={address}", f"-method={method}", f"-requests={request}"),
        *(f"-trigger={trigger}", f"-triggers={triggers}", *flags),
    )
    last: list[float] = found["last"]
    return last


async def _rates(mode: str, address: str, method: str, requests: Path, *flags: str) -> Rates:
    found = await _run(mode, f"-addr={address}", f"-method={method}", f"-requests={requests}", *flags)
    if found["failed"]:
        raise RuntimeError(f"{found['failed']} calls of {method} failed: {found['error']}")
    return Rates(found["rate"], found["p50"], found["p99"])


async def _run(*arguments: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        _BINARY, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {errors.decode()}")
    found: dict[str, Any] = json.loads(output)
    return found
