"""Runs ``ossa-registry`` as users do: as a process, with or without a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.forked import run_script

PROGRAM = str(Path(sys.executable).with_name("ossa-registry"))
TIMEOUT = 60.0
_POLL_SECONDS = 0.02


class Done(NamedTuple):
    """Exit code and output of a finished run."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


class Running:
    """A running program. Its output goes to files, which can be read while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self._process = process
        self._out = out
        self._err = err

    @property
    def out(self) -> str:
        """Standard output so far."""
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """Standard error so far."""
        return self._err.read_text(encoding="utf-8")

    def wait_for(self, text: str, count: int = 1, *, err: bool = False) -> None:
        """Wait until the program has printed a text ``count`` times."""
        deadline = time.monotonic() + TIMEOUT
        while (self.err if err else self.out).count(text) < count:
            assert self._process.poll() is None, f"ended with {self._process.returncode}: {self.out}{self.err}"
            assert time.monotonic() < deadline, f"{text!r} was not printed: {self.out}{self.err}"
            time.sleep(_POLL_SECONDS)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGINT) -> Done:
        """Send a signal and wait for the end."""
        self.send(number)
        return self.wait()

    def wait(self) -> Done:
        """Wait for the end."""
        return Done(self._process.wait(TIMEOUT), self.out, self.err)


class Program:
    """Runs commands against one registry."""

    def __init__(self, target: str, directory: Path) -> None:
        self.target = target
        self.directory = directory
        self._runs = 0

    def run(self, *args: str, stdin: str | None = None, **variables: str) -> Done:
        """Run a command to its end, without a terminal."""
        env = self.environment(variables)
        if stdin is None and not variables:
            done = Done(*run_script(PROGRAM, *args, env=env, cwd=self.directory, seconds=TIMEOUT))
        else:
            process = subprocess.run(
                [PROGRAM, *args],
                env=env,
                cwd=self.directory,
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                encoding="utf-8",
                timeout=TIMEOUT,
                check=False,
            )
            done = Done(process.returncode, process.stdout, process.stderr)
        assert "Traceback" not in done.err, done.err
        return done

    def run_ok(self, *args: str, stdin: str | None = None) -> Done:
        """Run a command that must succeed without messages on standard error."""
        done = self.run(*args, stdin=stdin)
        assert (done.code, done.err) == (0, ""), done
        return done

    @contextmanager
    def start(self, *args: str, executable: str = PROGRAM) -> Iterator[Running]:
        """Start a command, or another program, that runs until it is stopped."""
        self._runs += 1
        out, err = (self.directory / f"{name}-{self._runs}" for name in ("out", "err"))
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [executable, *args],
                env=self.environment({}),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
            )
        try:
            yield Running(process, out, err)
        finally:
            process.kill()
            process.wait()

    def run_on_terminal(self, *args: str, **variables: str) -> tuple[int, str]:
        """Run a command on a new pseudo-terminal; return its exit code and all output."""
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [PROGRAM, *args],
            env=self.environment({"TERM": "xterm-256color", "COLUMNS": "200", **variables}),
            cwd=self.directory,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        try:
            output = b"".join(_read_terminal(controller))
            return process.wait(TIMEOUT), output.decode().replace("\r\n", "\n")
        finally:
            process.kill()
            process.wait()
            os.close(controller)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the tests without variables that change the output."""
        removed = ("OSSA_REGISTRY_", "_OSSA_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
        return kept | {"OSSA_REGISTRY_TARGET": self.target, **variables}


def _read_terminal(controller: int) -> Iterator[bytes]:
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        if not select.select([controller], [], [], _POLL_SECONDS)[0]:
            continue
        try:
            data = os.read(controller, 65_536)
        except OSError:  # the other end was closed
            return
        if not data:
            return
        yield data
    raise AssertionError("the program did not end in time")


def lines(text: str) -> Sequence[Sequence[str]]:
    """Return the words of each line of a table."""
    return [line.split() for line in text.splitlines()]
