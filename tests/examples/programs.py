"""The examples as their readers run them: by the commands of their READMEs, away from the checkout."""

import asyncio
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import pytest

from tests.support.console import blocks
from tests.support.waiting import until

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT: Final = 600.0
"""Seconds that setting up may take: all of a language's packages come over the network."""
PATIENCE: Final = 60.0
"""Seconds until what must come is given up."""

_MADE: Final = ("node_modules", "target", "bin", "gen", "__pycache__")
_NO_NETWORK: Final = re.compile(
    r"EAI_AGAIN|ENOTFOUND|ENETUNREACH|ECONNREFUSED|ECONNRESET|ETIMEDOUT"  # npm
    r"|dial tcp|i/o timeout|no such host"  # Go
    r"|Unknown host|Could not transfer artifact|Connection refused|Network is unreachable"  # Maven
)


@dataclass(frozen=True)
class Language:
    """An example, and the programs that it needs."""

    name: str
    tools: tuple[str, ...] = ()

    def commands(self) -> tuple[str, str, str]:
        """The commands of its README: set up (empty if that is not to be tested), agent, subscriber."""
        readme = (ROOT / "examples" / self.name / "README.md").read_text(encoding="utf-8")
        found = [(command.text, block.skip) for block in blocks(readme) for command in block.commands]
        (setup, skip), (agent, _), (subscriber, _) = found
        return "" if skip else setup, agent, subscriber


class Example:
    """An example that is set up, in a copy of what it needs of the checkout."""

    def __init__(self, language: Language, directory: Path) -> None:
        self.language, self.directory = language, directory

    def agent(self, output: Path, **environment: str) -> "Program":
        """Its agent."""
        return Program(self.language.commands()[1], self.directory, output, environment)

    def subscriber(self, output: Path, **environment: str) -> "Program":
        """Its subscriber."""
        return Program(self.language.commands()[2], self.directory, output, environment)


class Program:
    """A command that runs as a process for as long as ``async with`` lasts."""

    def __init__(self, command: str, directory: Path, output: Path, environment: Mapping[str, str]) -> None:
        self._command, self._directory, self._output = command, directory, output
        self._environment = _environ() | dict(environment)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._output.mkdir()
        with (self._output / "stdout").open("wb") as stdout, (self._output / "stderr").open("wb") as stderr:
            # In the place of the shell, so that signals come to it.
            self._process = await asyncio.create_subprocess_exec(
                *("bash", "-c", f"exec {self._command}"),
                cwd=self._directory,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    @property
    def process(self) -> asyncio.subprocess.Process:
        """Its process."""
        assert self._process is not None
        return self._process

    def lines(self) -> list[str]:
        """What it has printed, whole lines only."""
        return (self._output / "stdout").read_text(encoding="utf-8").rpartition("\n")[0].splitlines()

    def errors(self) -> str:
        """What it has printed as errors."""
        return (self._output / "stderr").read_text(encoding="utf-8", errors="replace")

    async def prints(self, pattern: str) -> re.Match[str]:
        """Waits until a line is what a regular expression says; gives the first that is."""
        found: list[re.Match[str]] = []

        def printed() -> bool:
            assert self.process.returncode is None, f"{self._command} has ended: {self.errors()}"
            found[:] = [match for line in self.lines() if (match := re.fullmatch(pattern, line))]
            return bool(found)

        try:
            await until(printed, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}: {pattern!r} in {self.lines()}\n{self.errors()}") from None
        return found[0]

    async def ends(self) -> int:
        """Waits for its end; gives the exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self.process.wait()


def set_up(language: Language, shared: Path) -> Example:
    """Sets an example up, once for all processes of the test run.

    Args:
        language: Which one.
        shared: A directory of this test run that all its processes see.
    """
    missing = [tool for tool in language.tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the {language.name} example needs {', '.join(missing)}: not in PATH")
    root = shared / f"example-{language.name}"
    example = Example(language, root / "examples" / language.name)
    done, refused = root / "done", root / "refused"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() and not refused.exists():
            _copy(language, root)
            fault = _run(language.commands()[0], example.directory)
            (refused if fault else done).write_text(fault, encoding="utf-8")
    if refused.exists():
        fault = refused.read_text(encoding="utf-8")
        cause = next((line for line in fault.splitlines() if _NO_NETWORK.search(line)), "")
        if cause and not os.environ.get("CI"):
            pytest.skip(f"the packages of the {language.name} example cannot be had: {cause}")
        pytest.fail(f"{language.commands()[0]}: {fault}")
    return example


def _copy(language: Language, root: Path) -> None:
    shutil.copytree(
        ROOT / "examples" / language.name,
        root / "examples" / language.name,
        ignore=shutil.ignore_patterns(*_MADE),
    )
    shutil.copytree(ROOT / "protos", root / "protos")
    (root / ".venv").symlink_to(Path(sys.prefix))


def _run(command: str, directory: Path) -> str:
    """Runs a command; gives what it printed if it failed, else nothing."""
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=directory,
            env=_environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return f"did not end in {BUILD_TIMEOUT} s"
    return (done.stdout or f"ended with {done.returncode}") if done.returncode else ""


def _environ() -> dict[str, str]:
    """The environment without what would be told to the examples, or lead tools back to the checkout."""
    ours = ("OSSA_REGISTRY_", "AGENT_", "REGISTRY", "CAPABILITY", "PYTEST", "MAKE", "MFLAGS")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
