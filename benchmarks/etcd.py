"""The peer: an etcd of its own, and the few requests to it that the scenarios make, as bytes.

Its data is in memory (``/dev/shm``), so that it does not wait for a disk at each write, as Redis with an append-only
file that is synchronised each second does not either.
"""

import asyncio
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
"""Field of a WatchResponse that holds events."""

_PREFIX, _PREFIX_END = b"/services/", b"/services0"
_SHARED_MEMORY = Path("/dev/shm")
_IN_MEMORY: Final = _SHARED_MEMORY if _SHARED_MEMORY.is_dir() else None
_START_WITHIN: Final = 20.0
_PUTS_IN_ONE: Final = 100  # of 128 that a transaction may have


def is_available() -> bool:
    """Whether it is installed (Debian: etcd-server)."""
    return shutil.which("etcd") is not None


@asynccontextmanager
async def etcd() -> AsyncIterator[str]:
    """Runs one; gives its address."""
    with tempfile.TemporaryDirectory(prefix="ossa-bench-", dir=_IN_MEMORY) as at:
        client, peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
        process = await asyncio.create_subprocess_exec(
            "etcd",
            f"--data-dir={at}",
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
            async with asyncio.timeout(_START_WITHIN):
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
    """Makes one call."""
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        return await made(request)


async def fill(address: str, services: Iterable[tuple[str, bytes]]) -> None:
    """Puts services under their names, many in a transaction."""
    waiting = list(services)
    for start in range(0, len(waiting), _PUTS_IN_ONE):
        some = waiting[start : start + _PUTS_IN_ONE]
        puts = (bytes_field(2, bytes_field(2, put(name, value))) for name, value in some)
        await call(address, _TXN, b"".join(puts))


async def grant(address: str, lease: int, ttl: int) -> None:
    """Makes a lease of so many seconds."""
    await call(address, _GRANT, integer_field(1, ttl) + integer_field(2, lease))


def put(name: str, value: bytes, lease: int = 0) -> bytes:
    """A PutRequest."""
    return bytes_field(1, _PREFIX + name.encode()) + bytes_field(2, value) + integer_field(3, lease)


def get(name: str) -> bytes:
    """A RangeRequest for one service."""
    return bytes_field(1, _PREFIX + name.encode())


def everything() -> bytes:
    """A RangeRequest for all services, as is needed for any question but their name."""
    return bytes_field(1, _PREFIX) + bytes_field(2, _PREFIX_END)


def keep_alive(lease: int) -> bytes:
    """A LeaseKeepAliveRequest."""
    return integer_field(1, lease)


def watch() -> bytes:
    """A WatchRequest for all services."""
    return bytes_field(1, everything())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
