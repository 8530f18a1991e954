"""Runs the examples with the commands of their READMEs, in a copy outside the checkout."""

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
"""Seconds for the set-up command, which downloads all packages of a language."""
TIMEOUT: Final = 60.0
"""Seconds to wait for an expected output or exit."""

_BUILD_PRODUCTS: Final = ("node_modules", "target", "bin", "gen", "__pycache__")
NETWORK_ERRORS: Final = re.compile(
    r"EAI_AGAIN|ENOTFOUND|ENETUNREACH|ECONNREFUSED|ECONNRESET|ETIMEDOUT"  # npm
    r"|dial tcp|i/o timeout|no such host"  # Go
    r"|Could not resolve host|failed to download"  # Cargo
    r"|Unknown host|Could not transfer artifact|Connection refused|Network is unreachable"  # Maven
)


@dataclass(frozen=True)
class Language:
    """The example of one language, and the tools that it needs."""

    name: str
    tools: tuple[str, ...] = ()

    def commands(self) -> tuple[str, str, str]:
        """Return the commands of its README: set-up (empty if it is not tested), agent and subscriber."""
        readme = (ROOT / "examples" / self.name / "README.md").read_text(encoding="utf-8")
        documented = [(command.text, block.skip) for block in blocks(readme) for command in block.commands]
        (setup, skip), (agent, _), (subscriber, _) = documented
        return "" if skip else setup, agent, subscriber


class Example:
    """An example after set-up, in a copy of the required part of the checkout."""

    def __init__(self, language: Language, directory: Path) -> None:
        self.language, self.directory = language, directory

    def agent(self, output: Path, **environment: str) -> "Program":
        """Return its agent, which ``async with`` starts."""
        return Program(self.language.commands()[1], self.directory, output, environment)

    def subscriber(self, output: Path, **environment: str) -> "Program":
        """Return its subscriber, which ``async with`` starts."""
        return Program(self.language.commands()[2], self.directory, output, environment)


class Program:
    """A command that runs as a process for the duration of ``async with``."""

    def __init__(self, command: str, directory: Path, output: Path, environment: Mapping[str, str]) -> None:
        self._command, self._directory, self._output = command, directory, output
        self._environment = _clean_environment() | dict(environment)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._output.mkdir()
        with (self._output / "stdout").open("wb") as stdout, (self._output / "stderr").open("wb") as stderr:
            # `exec` replaces the shell, so that the program receives the signals.
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
        """The running process."""
        assert self._process is not None
        return self._process

    def lines(self) -> list[str]:
        """Return the complete lines of its standard output."""
        return (self._output / "stdout").read_text(encoding="utf-8").rpartition("\n")[0].splitlines()

    def errors(self) -> str:
        """Return its standard error."""
        return (self._output / "stderr").read_text(encoding="utf-8", errors="replace")

    async def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait until a line matches a regular expression; return the first match."""
        found: list[re.Match[str]] = []

        def printed() -> bool:
            assert self.process.returncode is None, f"{self._command} has exited: {self.errors()}"
            found[:] = [match for line in self.lines() if (match := re.fullmatch(pattern, line))]
            return bool(found)

        try:
            await until(printed, TIMEOUT)
        except AssertionError as error:
            raise AssertionError(f"{error}: {pattern!r} in {self.lines()}\n{self.errors()}") from None
        return found[0]

    async def wait_for_exit(self) -> int:
        """Wait until it exits; return the exit code."""
        async with asyncio.timeout(TIMEOUT):
            return await self.process.wait()


def set_up(language: Language, shared: Path) -> Example:
    """Set up an example, once for all processes of the test run.

    Args:
        language: The language of the example.
        shared: A directory that all processes of the test run share.
    """
    missing = [tool for tool in language.tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the {language.name} example needs {', '.join(missing)}, which is not installed")
    root = shared / f"example-{language.name}"
    example = Example(language, root / "examples" / language.name)
    succeeded, failed = root / "succeeded", root / "failed"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not succeeded.exists() and not failed.exists():
            _copy_example(language, root)
            code, printed = run_command(language.commands()[0], example.directory)
            output = (printed or f"exited with {code}") if code else ""
            (failed if output else succeeded).write_text(output, encoding="utf-8")
    if failed.exists():
        output = failed.read_text(encoding="utf-8")
        cause = next((line for line in output.splitlines() if NETWORK_ERRORS.search(line)), "")
        if cause and not os.environ.get("CI"):
            pytest.skip(f"the packages of the {language.name} example cannot be downloaded: {cause}")
        pytest.fail(f"{language.commands()[0]}: {output}")
    return example


def _copy_example(language: Language, root: Path) -> None:
    shutil.copytree(
        ROOT / "examples" / language.name,
        root / "examples" / language.name,
        ignore=shutil.ignore_patterns(*_BUILD_PRODUCTS),
    )
    shutil.copytree(ROOT / "protos", root / "protos")
    (root / ".venv").symlink_to(Path(sys.prefix))


def run_command(command: str, directory: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a command; return its exit code, and its output with errors."""
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=directory,
            env=_clean_environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return 1, f"did not exit within {BUILD_TIMEOUT} s"
    return done.returncode, done.stdout


def _clean_environment() -> dict[str, str]:
    """Return the environment without variables that configure the examples or direct tools to the checkout."""
    removed = ("OSSA_REGISTRY_", "AGENT_", "REGISTRY", "CAPABILITY", "PYTEST", "MAKE", "MFLAGS")
    return {name: value for name, value in os.environ.items() if not name.startswith(removed)}
