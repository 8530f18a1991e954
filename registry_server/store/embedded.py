"""``EmbeddedRedis``: a private redis-server for ``redis.url = embedded``.

It must neither outlive this process, nor run twice on one append-only file:

- This process holds a lock on ``registry.lock`` in the data directory. The lock is not inherited, so ``kill -9``
  releases it immediately.
- A pipe, the lifeline, is closed when this process ends for any reason; the shell that guards redis-server then
  terminates it.
- redis-server and its forks inherit a lock on ``redis.log``, so it is held until all of them have ended.

Nor may it start empty in a directory that held services: ``append_only.py`` detects that.
"""

import asyncio
import errno
import fcntl
import os
import shutil
import socket
import tempfile
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import structlog

from registry_server.errors import ConfigurationError
from registry_server.instrumentation.problems import Problems
from registry_server.runtime.child import RestartBackoff
from registry_server.runtime.guarded_process import GuardedProcess
from registry_server.runtime.tasks import cancel
from registry_server.store import append_only
from registry_server.store.redis_binary import choose_redis_server

MAX_SOCKET_PATH_BYTES: Final = 103  # sun_path without its NUL on macOS; Linux permits four more
MAX_LOG_BYTES: Final = 1 << 20
_PROBLEM: Final = "embedded_redis"
_MARK_CHECK_SECONDS: Final = 0.25
"""How often an unmarked data directory is checked for data; the registry stores its epoch as soon as it runs."""

log = structlog.get_logger(__name__)


class EmbeddedRedis:
    """A redis-server on a unix socket, with its append-only file in a data directory; restarted when it dies.

    Start worker processes with exec, not with fork alone: a fork would hold the lock and the lifeline after this
    process has died.

    Attributes:
        binary: Path of redis-server; set on entry.
        version: Its version, such as ``7.0.15``; set on entry.
    """

    binary: Path
    version: str
    _socket: Path
    _redis: GuardedProcess  # while the supervisor task runs, only that task assigns it
    _resources: AsyncExitStack

    def __init__(
        self,
        data_dir: Path,
        *,
        start_timeout_seconds: float = 60.0,
        stop_timeout_seconds: float = 10.0,
        orphan_timeout_seconds: float = 15.0,
        backoff: RestartBackoff | None = None,
        problems: Problems | None = None,
    ) -> None:
        """Configure it; it runs while it is entered as a context manager.

        Args:
            data_dir: Directory of the append-only file, the log and the lock; created if missing.
            start_timeout_seconds: Time for loading the data.
            stop_timeout_seconds: Time for a graceful end before SIGKILL.
            orphan_timeout_seconds: Time for the redis-server of a dead registry to end; longer than its guarding shell
                waits before SIGKILL.
            backoff: Delays before a redis-server that has ended is restarted.
            problems: Problems of the process, for a redis-server that does not start again.
        """
        self._data_dir = data_dir.absolute()  # redis-server changes its working directory
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._orphan_timeout_seconds = orphan_timeout_seconds
        self._backoff = backoff or RestartBackoff(healthy_seconds=10.0)
        self._problems = problems or Problems()
        self._log_path = self._data_dir / "redis.log"
        self._log_start = 0  # size of the log when redis-server was started

    @property
    def url(self) -> str:
        """URL for redis-py; it stays the same even if redis-server is restarted."""
        return f"unix://{quote(str(self._socket))}"

    async def __aenter__(self) -> Self:
        """Start redis-server and wait until it has loaded its data.

        Raises:
            ConfigurationError: It cannot start; the message names the setting ``data_dir`` or ``redis.url``.
        """
        try:
            async with AsyncExitStack() as stack:
                self._lock_data_dir(stack)
                append_only.check_directory(self._data_dir)
                self.binary, self.version = await choose_redis_server(self._data_dir)
                self._socket = self._place_socket(stack)
                await self._spawn()
                stack.push_async_callback(lambda: self._redis.stop(self._stop_timeout_seconds))
                await self._wait_until_loaded()
                if not await self._holds_data():
                    append_only.require_unmarked(self._data_dir, "Redis has loaded no data from its append-only file")
                tasks = [
                    asyncio.create_task(self._supervise(), name="embedded-redis"),
                    asyncio.create_task(self._mark_data_dir(), name="embedded-redis-marker"),
                ]
                stack.push_async_callback(cancel, tasks)
                self._resources = stack.pop_all()
        except OSError as error:
            raise ConfigurationError(f"data_dir: cannot run redis-server on {self._data_dir}: {error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop redis-server, with SIGKILL after the timeout, and release the data directory."""
        await self._resources.aclose()

    def _lock_data_dir(self, stack: AsyncExitStack) -> None:
        try:
            self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._data_dir / "registry.lock", os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, lock)
            if not _try_lock(lock):
                holder = os.read(lock, 32).decode().strip() or "unknown"
                raise ConfigurationError(f"data_dir: {self._data_dir} is in use by another server, pid {holder}")
            os.ftruncate(lock, 0)
            os.write(lock, f"{os.getpid()}\n".encode())
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigurationError(f"data_dir: {self._data_dir} is not a directory") from error

    def _place_socket(self, stack: AsyncExitStack) -> Path:
        # redis-server silently truncates a path that is too long, and listens there.
        in_data_dir = self._data_dir / "redis.sock"
        if len(os.fsencode(in_data_dir)) <= MAX_SOCKET_PATH_BYTES:
            return in_data_dir
        private = Path(tempfile.mkdtemp(prefix="ossa-"))
        stack.callback(shutil.rmtree, private, ignore_errors=True)
        in_data_dir.unlink(missing_ok=True)
        in_data_dir.symlink_to(private / "redis.sock")  # for ``running_socket_url``
        if len(os.fsencode(private / "redis.sock")) > MAX_SOCKET_PATH_BYTES:
            raise ConfigurationError(f"data_dir: {self._data_dir} is too long for a socket; so is TMPDIR, {private}")
        return private / "redis.sock"

    async def _spawn(self) -> None:
        output = os.open(self._log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            async with asyncio.timeout(self._orphan_timeout_seconds):
                while not _try_lock(output):  # noqa: ASYNC110 - a lock file provides no event
                    await asyncio.sleep(0.02)
            if os.fstat(output).st_size > MAX_LOG_BYTES:
                os.ftruncate(output, 0)
            self._log_start = os.fstat(output).st_size
            self._socket.unlink(missing_ok=True)
            self._redis = await GuardedProcess.start(
                *(self.binary, "--port", "0", "--unixsocket", self._socket, "--unixsocketperm", "700"),
                *("--dir", self._data_dir, "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
                *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
                output=output,
            )
        except TimeoutError:
            raise ConfigurationError(f"data_dir: a previous redis-server still uses {self._data_dir}") from None
        finally:
            os.close(output)
        log.info("redis-server started", pid=self._redis.pid, binary=str(self.binary), version=self.version)

    async def _wait_until_loaded(self) -> None:
        try:
            async with asyncio.timeout(self._start_timeout_seconds):
                # -LOADING until the append-only file has been read
                while await self._ask("PING") != b"+PONG\r\n":
                    if (status := self._redis.returncode) is not None:
                        cause = append_only.explain_failure(self._read_log(), self._data_dir, self.binary)
                        raise self._failure(f"ended with status {status}: {cause}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise self._failure(f"did not answer within {self._start_timeout_seconds:.0f} s") from None
        if removed := append_only.truncation(self._read_log()):
            log.warning("append-only file truncated", position=removed, reason="its last command was incomplete")

    async def _holds_data(self) -> bool:
        answer = await self._ask("DBSIZE")
        return answer.startswith(b":") and answer != b":0\r\n"

    async def _ask(self, command: str) -> bytes:
        """Return the answer of redis-server in one line, or nothing if it does not answer."""
        with suppress(OSError):
            reader, writer = await asyncio.open_unix_connection(self._socket)
            with closing(writer):
                writer.write(f"{command}\r\n".encode())
                return await reader.readline()
        return b""

    async def _mark_data_dir(self) -> None:
        """Mark the data directory as soon as Redis holds data."""
        while not append_only.is_marked(self._data_dir):
            if await self._holds_data():
                with suppress(OSError):  # such as a full disk
                    append_only.mark(self._data_dir)
            await asyncio.sleep(_MARK_CHECK_SECONDS)

    def _read_log(self) -> str:
        """Return what redis-server has logged since it was started."""
        with self._log_path.open(errors="replace") as lines:
            lines.seek(self._log_start)
            return lines.read(MAX_LOG_BYTES)

    def _failure(self, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"data_dir: {self._data_dir}: {self.binary} {self.version} (log: {self._log_path}) {reason}"
        )

    async def _supervise(self) -> None:
        while True:
            self._backoff.start()
            status = await self._redis.wait()
            delay = self._backoff.next_delay()
            log.warning("redis-server ended; restarting it", exit_status=status, delay_seconds=delay)
            await asyncio.sleep(delay)
            self._redis.reap()
            try:
                await self._spawn()
                await self._wait_until_loaded()
            except (OSError, ConfigurationError) as error:
                log.warning("redis-server restart failed", error=str(error))
                self._problems.report(_PROBLEM, "the embedded Redis does not start again; the log has the cause")
            else:
                self._problems.resolve(_PROBLEM)


async def check_data_dir(data_dir: Path) -> str:
    """Verify that an embedded Redis can use a data directory, without starting it.

    Returns:
        The program that would run, with its version.

    Raises:
        ConfigurationError: It cannot; the message names the setting ``data_dir`` or ``redis.url``.
    """
    _check_access(data_dir)
    append_only.check_directory(data_dir)
    binary, version = await choose_redis_server(data_dir)
    return f"{binary} {version} in {data_dir}"


def _check_access(data_dir: Path) -> None:
    directory = data_dir.absolute()
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    if not existing.is_dir():
        raise ConfigurationError(f"data_dir: {existing} is not a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigurationError(f"data_dir: cannot write to {existing}: {os.strerror(errno.EACCES)}")


def running_socket_url(data_dir: Path) -> str:
    """Return the URL of the embedded Redis that runs on a data directory; empty if none runs."""
    path = data_dir.absolute() / "redis.sock"
    path = path.readlink() if path.is_symlink() else path
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return ""
    return f"unix://{quote(str(path))}"


def disk_of(url: str, data_dir: Path) -> str:
    """Return the disk of the Redis with a URL, for people: that of the data directory if it is embedded there."""
    if url.startswith(f"unix://{quote(str(data_dir.absolute()))}/"):
        return f"the disk of {data_dir}"
    return "the disk of Redis"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
