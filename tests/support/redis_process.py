"""A real redis-server on a TCP port, for tests that kill, pause and restart it."""

import asyncio
import os
import random
import re
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from registry_server.runtime.guarded_process import GuardedProcess
from registry_server.store.redis_binary import find_redis_servers

START_TIMEOUT_SECONDS = 30.0
STOP_GRACE_SECONDS = 5.0
# Below the ephemeral ports of Linux and macOS: no outgoing connection can take the port during a restart.
PORTS = range(20_000, 32_000)


class RedisProcess:
    """A redis-server with its append-only file in ``directory``. It exits with the test process, even after kill -9.

    Port and data are kept across restarts.

    Args:
        directory: Directory of the data and ``redis.log``; created if missing.
        *args: Additional arguments, such as ``"--maxmemory", "1mb"``.
        appendfsync: Use ``always`` to simulate a power failure without lost writes; with ``no``, every confirmed write
            survives SIGKILL. With ``everysec`` Redis confirms writes before it passes them to the kernel if the disk
            is slow.
        binary: Program to run instead of the one that the registry would choose.
        password: Password that clients must send.
        ports: Range from which the port is chosen.
    """

    def __init__(
        self,
        directory: Path,
        *args: str,
        appendfsync: str = "no",
        binary: Path | None = None,
        password: str = "",
        ports: Sequence[int] = PORTS,
    ) -> None:
        self._directory, self._args, self._appendfsync = directory, args, appendfsync
        self._binary = binary or find_redis_server()
        self.password, self._ports = password, ports
        if password:
            self._args = (*args, "--requirepass", password)
        self._process: GuardedProcess | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """Return the TCP port on 127.0.0.1, which is known after the first start."""
        assert self._port, "not started yet"
        return self._port

    @property
    def url(self) -> str:
        """Return the value of the setting ``redis.url``."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Return the process id of redis-server."""
        assert self._process is not None, "not running"
        return self._process.pid

    async def start(self) -> None:
        """Start the server and wait until it has loaded its data and responds."""
        assert self._process is None, "already running; use restart()"
        self._directory.mkdir(parents=True, exist_ok=True)
        fixed = bool(self._port)
        async with asyncio.timeout(START_TIMEOUT_SECONDS):
            while not await self._try_port(self._port or free_port(self._ports)):
                if "Address already in use" not in (log := self._log()):
                    raise RuntimeError(f"redis-server failed to start:\n{log}")
                if fixed:
                    await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop the server, also if it is paused; kill it after five seconds. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            await process.stop(STOP_GRACE_SECONDS)

    async def restart(self) -> None:
        """Stop the server if it runs, and start it on the same port with the same data."""
        await self.stop()
        await self.start()

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def pause(self) -> None:
        """Send SIGSTOP: connections stay open and the kernel accepts new ones, but the server does not respond."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _try_port(self, port: int) -> bool:
        output = os.open(self._directory / "redis.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            process = await GuardedProcess.start(
                *(self._binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", self._directory.absolute()),
                *("--appendonly", "yes", "--appendfsync", self._appendfsync, "--save", "", *self._args),
                output=output,
            )
        finally:
            os.close(output)
        try:
            while process.returncode is None:
                if await serving_pid(port, self.password) == process.pid:
                    self._process, self._port = process, port
                    return True
                await asyncio.sleep(0.01)
        finally:
            if self._process is not process:
                await process.stop(STOP_GRACE_SECONDS)
        return False

    def _log(self) -> str:
        return (self._directory / "redis.log").read_text(errors="replace")


def find_redis_server() -> Path:
    """Return the redis-server that an embedded Redis prefers."""
    return next(find_redis_servers())


def free_port(ports: Sequence[int] = PORTS) -> int:
    """Return a port of 127.0.0.1 that is not in use."""
    for port in random.sample(ports, 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port found")


async def serving_pid(port: int, password: str = "") -> int | None:
    """Return the process id of the redis-server that serves on a port; it may belong to another process."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    try:
        if password:
            writer.write(f"AUTH {password}\r\n".encode())
            await reader.readline()
        writer.write(b"INFO\r\n")
        length = int((await reader.readline())[1:] or 0)
        info = await reader.readexactly(length)
    except (OSError, ValueError, asyncio.IncompleteReadError):
        return None
    finally:
        writer.close()
    pid = re.search(rb"\bprocess_id:(\d+)", info)
    return int(pid[1]) if pid and b"\nloading:1" not in info else None  # Sentinel has no loading flag
