"""Child processes: how one is started, served, observed and replaced.

A child is a Python process with a connection to its parent, over which it first receives its setup. It sends an empty
frame every second, so that the parent can detect a child that hangs, and exits when the connection closes, so that none
outlives a killed parent.
"""

import asyncio
import pickle
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from registry_server.runtime.connection import Connection
from registry_server.runtime.tasks import cancel, run_loop

_ALIVE_INTERVAL_SECONDS: Final = 1.0
_MAX_JITTER: Final = 1.5

_T = TypeVar("_T")


class Child(NamedTuple):
    """A running child process and the connection to it."""

    process: asyncio.subprocess.Process
    connection: Connection

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it is still running."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


@asynccontextmanager
async def running_child(module: str, setup: object) -> AsyncIterator[Child]:
    """Run a module whose ``main`` calls ``serve_child``; kill the process on exit.

    Args:
        module: Dotted name of the module.
        setup: First message to the child, as a pickle.
    """
    own_end, child_end = socket.socketpair()
    connection = await Connection.open(own_end)
    try:
        with child_end:
            process = await asyncio.create_subprocess_exec(
                # -P: do not import modules from the directory in which the registry was started.
                *(sys.executable, "-P", "-m", module, str(child_end.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[child_end.fileno()],
            )
        child = Child(process, connection)
        try:
            connection.send_pickle(setup)
            yield child
        finally:
            child.send_signal(signal.SIGKILL)
            await process.wait()
    finally:
        connection.close()


def serve_child(
    main: Callable[[Connection, Any], Coroutine[Any, Any, _T]], *, ignored_signals: Iterable[signal.Signals]
) -> _T | None:
    """Serve the connection to the parent, whose file descriptor is the first argument of this program.

    Args:
        main: Called in a new event loop with the connection and the setup.
        ignored_signals: Signals that a terminal sends to the whole process group and that only the parent handles.

    Returns:
        The result of ``main``; ``None`` if the parent ended before it sent the setup.
    """
    for number in ignored_signals:
        signal.signal(number, signal.SIG_IGN)

    async def serve() -> _T | None:
        connection = await Connection.open(socket.socket(fileno=int(sys.argv[1])))
        setup = await anext(connection, None)
        if setup is None:
            return None
        alive = asyncio.create_task(_send_alive_frames(connection), name="alive")
        try:
            return await main(connection, pickle.loads(setup))  # noqa: S301 - from our own parent
        finally:
            await cancel([alive])
            connection.close()

    return run_loop(serve())


async def _send_alive_frames(connection: Connection) -> None:
    while True:
        connection.send(b"")
        await connection.drain()
        await asyncio.sleep(_ALIVE_INTERVAL_SECONDS)


@dataclass(kw_only=True)
class RestartBackoff:
    """Delays before a process is restarted, in seconds: they double while it ends soon after each start."""

    min_seconds: float = 0.1
    max_seconds: float = 5.0
    healthy_seconds: float = 5.0
    """Uptime after which the end of the process no longer counts as a repeated failure."""
    clock: Callable[[], float] = time.monotonic
    uniform: Callable[[float, float], float] = random.uniform
    _started: float = field(default=0.0, init=False)
    _failures: int = field(default=0, init=False)

    def start(self) -> None:
        """Begin to measure the uptime; call it whenever the process starts."""
        self._started = self.clock()

    def next_delay(self) -> float:
        """Return how long to wait before the next start; call it when the process has ended."""
        if self.clock() - self._started > self.healthy_seconds:
            self._failures = 0
        delay = self.min_seconds * 2.0 ** min(self._failures, 16) * self.uniform(1, _MAX_JITTER)
        self._failures += 1
        return round(min(delay, self.max_seconds), 3)


class SilenceWatch:
    """Counts periodic checks since the last frame of a child.

    They are counted instead of timed: a pause of this process must not count as silence of the child.
    """

    def __init__(
        self, interval_seconds: float = 1.0, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._interval_seconds = interval_seconds
        self._sleep = sleep
        self._checks = 0

    def reset(self) -> None:
        """Begin to count again."""
        self._checks = 0

    def observe(self, connection: Connection) -> None:
        """Count from now on the checks between two frames of a connection."""
        self.reset()
        connection.on_frame = self.reset

    async def next_check(self) -> int:
        """Wait until the next check, and return the number of checks without a frame."""
        await self._sleep(self._interval_seconds)
        self._checks += 1
        return self._checks
