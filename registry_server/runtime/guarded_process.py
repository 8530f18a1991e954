"""``GuardedProcess``: a program that ends when this process ends, for any reason.

It is for programs that, unlike a child in ``child.py``, do not watch a connection. A pipe, the lifeline, closes when
this process ends; the shell that guards the program then terminates it.
"""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

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
