"""Load on one unary RPC: from h2load if it is installed, otherwise from a Python client."""

import asyncio
import re
import shutil
import struct
import tempfile
import time

import grpc

IN_FLIGHT = 32
_CONNECTIONS = 2


def generator() -> str:
    """Return the name of the load generator in use."""
    return (
        "h2load" if shutil.which("h2load") else "a Python client (h2load is not installed: the ratio is too favourable)"
    )


async def rate(address: str, method: str, request: bytes, seconds: int, key: str = "") -> float:
    """Call a method with 32 calls in flight and return the calls per second.

    Args:
        address: HOST:PORT of the server.
        method: Path of the method, ``/package.Service/Method``.
        request: Encoded request message.
        seconds: Duration of the load.
        key: API key to send; empty for none.
    """
    if shutil.which("h2load"):
        return await _h2load(address, method, request, seconds, key)
    return await _python(address, method, request, seconds, key)


async def _h2load(address: str, method: str, request: bytes, seconds: int, key: str) -> float:
    with tempfile.NamedTemporaryFile(prefix="ossa-bench-") as body:
        body.write(struct.pack(">BI", 0, len(request)) + request)
        body.flush()
        process = await asyncio.create_subprocess_exec(
            "h2load",
            f"--duration={seconds}",
            "--warm-up-time=1",
            f"--clients={_CONNECTIONS}",
            f"--max-concurrent-streams={IN_FLIGHT // _CONNECTIONS}",
            f"--data={body.name}",
            "--header=content-type: application/grpc",
            "--header=te: trailers",
            *([f"--header=authorization: Bearer {key}"] if key else []),
            f"http://{address}{method}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await process.communicate())[0].decode()
    found = re.search(r"finished in .*?, ([\d.]+) req/s", output)
    failed = re.search(r"(\d+) failed, (\d+) errored", output)
    assert found, output
    assert failed, output
    assert failed.groups() == ("0", "0"), output
    return float(found[1])


async def _python(address: str, method: str, request: bytes, seconds: int, key: str) -> float:
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    async with grpc.aio.insecure_channel(address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        end = time.perf_counter() + seconds
        calls = 0

        async def caller() -> None:
            nonlocal calls
            while time.perf_counter() < end:
                await call(request, metadata=metadata)
                calls += 1

        start = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return calls / (time.perf_counter() - start)
