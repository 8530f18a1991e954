"""``ossa-registry`` as its users run it: a process, with or without a terminal."""

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

PROGRAM = str(Path(sys.executable).with_name("ossa-registry"))
PATIENCE = 60.0
_POLL = 0.02


class Done(NamedTuple):
    """What became of a run."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


class Running:
    """A program that runs until it is ended. What it prints goes to files, which can be read meanwhile."""

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
        """Waits until it has printed a text so many times."""
        until = time.monotonic() + PATIENCE
        while (self.err if err else self.out).count(text) < count:
            assert self._process.poll() is None, f"ended with {self._process.returncode}: {self.out}{self.err}"
            assert time.monotonic() < until, f"{text!r} was not printed: {self.out}{self.err}"
            time.sleep(_POLL)

    def end(self, number: signal.Signals = signal.SIGINT) -> Done:
        """Sends a signal and waits for the end."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> Done:
        """Waits for the end."""
        return Done(self._process.wait(PATIENCE), self.out, self.err)


class Program:
    """Runs commands against one registry."""

    def __init__(self, target: str, directory: Path) -> None:
        self.target = target
        self.directory = directory
        self._runs = 0

    def run(self, *args: str, stdin: str | None = None, **variables: str) -> Done:
        """Runs a command to its end, without a terminal."""
        done = subprocess.run(
            [PROGRAM, *args],
            env=self.environment(variables),
            cwd=self.directory,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def good(self, *args: str, stdin: str | None = None) -> Done:
        """Runs a command that must succeed and has nothing to complain of."""
        done = self.run(*args, stdin=stdin)
        assert (done.code, done.err) == (0, ""), done
        return done

    @contextmanager
    def started(self, *args: str) -> Iterator[Running]:
        """Starts a command that goes on until it is ended."""
        self._runs += 1
        out, err = (self.directory / f"{name}-{self._runs}" for name in ("out", "err"))
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [PROGRAM, *args],
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

    def on_terminal(self, *args: str, **variables: str) -> tuple[int, str]:
        """Runs a command on a terminal of its own; gives its exit code and all that it wrote there."""
        ours, its = pty.openpty()
        process = subprocess.Popen(
            [PROGRAM, *args],
            env=self.environment({"TERM": "xterm-256color", "COLUMNS": "200", **variables}),
            cwd=self.directory,
            stdin=its,
            stdout=its,
            stderr=its,
        )
        os.close(its)
        try:
            written = b"".join(_read(ours))
            return process.wait(PATIENCE), written.decode().replace("\r\n", "\n")
        finally:
            process.kill()
            process.wait()
            os.close(ours)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """That of the tests, without what would change how things are printed."""
        strange = ("OSSA_REGISTRY_", "_OSSA_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        return kept | {"OSSA_REGISTRY_TARGET": self.target, **variables}


def _read(terminal: int) -> Iterator[bytes]:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if not select.select([terminal], [], [], _POLL)[0]:
            continue
        try:
            data = os.read(terminal, 65_536)
        except OSError:  # the other end was closed
            return
        if not data:
            return
        yield data
    raise AssertionError("the program does not end")


def lines(text: str) -> Sequence[Sequence[str]]:
    """The words of each line of a table."""
    return [line.split() for line in text.splitlines()]
