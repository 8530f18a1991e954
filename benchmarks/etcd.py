"""Builds and runs etcd for comparison, and encodes the requests that the scenarios send to it.

Go builds the version that ``benchmarks/etcd/go.mod`` pins; the first build takes one to three minutes. The server's
data is in memory (``/dev/shm``), so that it does not wait for a disk at each write: Redis, which synchronises its
append-only file once a second, does not wait either.
"""

import asyncio
import re
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import grpc

from registry_server.model.wire import bytes_field, integer_field

PUT: Final = "/etcdserverpb.KV/Put"
RANGE: Final = "/etcdserverpb.KV/Range"
KEEP_ALIVE: Final = "/etcdserverpb.Lease/LeaseKeepAlive"
WATCH: Final = "/etcdserverpb.Watch/Watch"
_GRANT: Final = "/etcdserverpb.Lease/LeaseGrant"
_TXN: Final = "/etcdserverpb.KV/Txn"
WATCH_EVENTS: Final = 11
"""Number of the field of a WatchResponse that contains events."""

_SOURCE: Final = Path(__file__).parent / "etcd"
_PACKAGE: Final = "go.etcd.io/etcd/server/v3"
_PINNED: Final = re.search(rf"{_PACKAGE} v([\d.]+)", (_SOURCE / "go.mod").read_text(encoding="utf-8"))
assert _PINNED is not None
VERSION: Final = _PINNED[1]
"""Version of the etcd server that the benchmarks build."""
_BINARY: Final = Path(f"build/etcd-{VERSION}").absolute()

_PREFIX, _PREFIX_END = b"/services/", b"/services0"
_SHARED_MEMORY = Path("/dev/shm")
_IN_MEMORY: Final = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
_START_TIMEOUT_SECONDS: Final = 20.0
_PUTS_PER_TRANSACTION: Final = 100  # etcd allows 128


def is_available() -> bool:
    """Return whether Go is installed, which builds etcd."""
    return shutil.which("go") is not None


async def build() -> None:
    """Build the pinned version of etcd, unless it is built already."""
    if _BINARY.exists():
        return
    # The binary appears under its name only when it is complete.
    partial = _BINARY.with_name(f"{_BINARY.name}.partial")
    partial.parent.mkdir(exist_ok=True)
    process = await asyncio.create_subprocess_exec("go", "build", "-o", str(partial), _PACKAGE, cwd=_SOURCE)
    if await process.wait():
        raise RuntimeError(f"go build of etcd {VERSION} failed")
    partial.rename(_BINARY)


@asynccontextmanager
async def etcd() -> AsyncIterator[str]:
    """Build etcd if necessary, run it and yield its client address."""
    await build()
    with tempfile.TemporaryDirectory(prefix="ossa-bench-", dir=_IN_MEMORY) as directory:
        client, peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
        process = await asyncio.create_subprocess_exec(
            _BINARY,
            f"--data-dir={directory}",
            f"--listen-client-urls=http://{client}",
            f"--advertise-client-urls=http://{client}",
            f"--listen-peer-urls=http://{peer}",
            f"--initial-advertise-peer-urls=http://{peer}",
            f"--initial-cluster=default=http://{peer}",
            f"--quota-backend-bytes={4 << 30}",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                while True:
                    with suppress(grpc.aio.AioRpcError):
                        await call(client, RANGE, everything())
                        break
                    await asyncio.sleep(0.1)
            yield client
        finally:
            process.terminate()
            await process.wait()


async def call(address: str, method: str, request: bytes) -> bytes:
    """Make one unary call with an encoded request and return the encoded response."""
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        invoke: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        return await invoke(request)


async def fill(address: str, services: Iterable[tuple[str, bytes]]) -> None:
    """Store services under their names, several in one transaction."""
    pending = list(services)
    for start in range(0, len(pending), _PUTS_PER_TRANSACTION):
        chunk = pending[start : start + _PUTS_PER_TRANSACTION]
        puts = (bytes_field(2, bytes_field(2, put(name, value))) for name, value in chunk)
        await call(address, _TXN, b"".join(puts))


async def grant(address: str, lease: int, ttl: int) -> None:
    """Grant a lease with a time to live in seconds."""
    await call(address, _GRANT, integer_field(1, ttl) + integer_field(2, lease))


def put(name: str, value: bytes, lease: int = 0) -> bytes:
    """Return a PutRequest."""
    return bytes_field(1, _PREFIX + name.encode()) + bytes_field(2, value) + integer_field(3, lease)


def get(name: str) -> bytes:
    """Return a RangeRequest for one service."""
    return bytes_field(1, _PREFIX + name.encode())


def everything() -> bytes:
    """Return a RangeRequest for all services, which every query other than by name requires."""
    return bytes_field(1, _PREFIX) + bytes_field(2, _PREFIX_END)


def keep_alive(lease: int) -> bytes:
    """Return a LeaseKeepAliveRequest."""
    return integer_field(1, lease)


def watch() -> bytes:
    """Return a WatchRequest for all services."""
    return bytes_field(1, everything())


def free_port() -> int:
    """Return a TCP port that is not in use."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
