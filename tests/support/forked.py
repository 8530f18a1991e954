"""Programs forked from a process that has imported their modules: a server starts in 0.1 s of processor time, not 1 s.

Everything else is as usual: processes with their own arguments, variables and signals.
"""

import asyncio
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, "tests.support.server_template"])


class ForkedProcess:
    """A module that runs as a program, with the interface of ``asyncio.subprocess.Process``."""

    def __init__(self, process: multiprocessing.process.BaseProcess, stderr: asyncio.StreamReader) -> None:
        assert process.pid is not None
        self._process, self.stderr = process, stderr
        self.pid = process.pid

    @classmethod
    async def start(cls, module: str, *arguments: str, env: Mapping[str, str], cwd: Path) -> Self:
        """Start a module with arguments, variables and a directory."""
        reading, writing = _CONTEXT.Pipe(duplex=False)
        with reading, writing:
            process = _CONTEXT.Process(target=_run, args=(module, arguments, dict(env), cwd, writing), daemon=True)
            await asyncio.to_thread(process.start)
            stderr = asyncio.StreamReader()
            pipe = os.fdopen(os.dup(reading.fileno()), "rb", buffering=0)
        protocol = asyncio.StreamReaderProtocol(stderr)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, pipe)
        return cls(process, stderr)

    @property
    def returncode(self) -> int | None:
        """Exit status, or the negated number of the signal that killed it; ``None`` while it runs."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        """Wait until the process ends, and return its ``returncode``."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        if self.returncode is None:
            loop.add_reader(self._process.sentinel, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(self._process.sentinel)
        assert self.returncode is not None
        return self.returncode


def run_script(script: str, *arguments: str, env: Mapping[str, str], cwd: Path, seconds: float) -> tuple[int, str, str]:
    """Run a Python script to its end, without input; return its exit code, output and errors.

    Raises:
        subprocess.TimeoutExpired: It did not end in time, and was killed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files = [Connection(os.dup(file.fileno()), readable=False) for file in (out, err)]  # it can be sent
        process = _CONTEXT.Process(target=_run_script, args=(script, arguments, dict(env), cwd, *files), daemon=True)
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired([script, *arguments], seconds)
        out.seek(0)
        err.seek(0)
        return process.exitcode, out.read().decode(), err.read().decode()


def _run_script(
    script: str, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, stdout: Connection, stderr: Connection
) -> None:
    _become(script, arguments, env, cwd, {1: stdout, 2: stderr})
    runpy.run_path(script, run_name="__main__")


def _run(module: str, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, stderr: Connection) -> None:
    _become(module, arguments, env, cwd, {2: stderr})
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _become(
    program: str, arguments: Sequence[str], env: Mapping[str, str], cwd: Path, files: Mapping[int, Connection]
) -> None:
    """Take over the arguments, variables, directory and files of a program."""
    for number, file in files.items():
        os.dup2(file.fileno(), number)
        file.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = [program, *arguments]
