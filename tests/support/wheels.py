"""Wheels built from the checkout, and environments that contain them but not the checkout."""

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

_TIMEOUT_SECONDS = 240.0


class Installed(NamedTuple):
    """An environment with a wheel, a working directory and a home directory, all outside the checkout."""

    environment: Path
    working_directory: Path
    home: Path
    runner: tuple[str, ...] = ()
    """Runs the programs of the environment; empty if they are in ``bin``."""

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the command that runs a program of the environment."""
        return [*self.runner, program if self.runner else str(self.environment / "bin" / program), *arguments]

    def variables(self) -> dict[str, str]:
        """Return the environment variables of its programs: they find no other program and no setting."""
        return {"HOME": str(self.home), "PATH": str(self.environment / "bin")}

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment and return its output. Fails if the exit code is not 0."""
        return subprocess.run(
            self.command(program, *arguments),
            cwd=self.working_directory,
            env=self.variables(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=_TIMEOUT_SECONDS,
        ).stdout


def environ() -> dict[str, str]:
    """Return the environment variables without those that refer to the checkout."""
    ours = ("OSSA_REGISTRY_", "PYTHON", "VIRTUAL_ENV", "COV_", "COVERAGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def build_wheel(project: Path, directory: Path) -> Path:
    """Build the wheel of a project in an empty directory."""
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(directory), str(project)]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = directory.iterdir()
    return wheel


def install(wheel: Path, directory: Path, home: Path) -> Installed:
    """Install a wheel into a new virtual environment, as pipx does."""
    made = _prepare(directory, home)
    venv.create(made.environment, with_pip=True)
    _run_online(*made.command("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)))
    return made


def install_with_uv(wheel: Path, directory: Path, home: Path) -> Installed:
    """Install a wheel with ``uvx``; its programs then run offline."""
    uvx = Path(sys.executable).with_name("uvx")
    if not uvx.exists():
        pytest.skip("needs uv, of the dependency group dev")
    runner = (str(uvx), "--quiet", "--cache-dir", str(directory / "cache"), "--python", sys.executable)
    links = os.environ.get("PIP_FIND_LINKS", "").split()
    source = ("--from", str(wheel), *(flag for link in links for flag in ("--find-links", link)))
    _run_online(*runner, *source, "ossa-registry", "--version")
    made = _prepare(directory, home)
    tools = made.environment / "bin"
    tools.mkdir(parents=True)
    for name in ("dirname", "realpath"):  # used by the scripts that uv writes
        (tools / name).symlink_to(shutil.which(name) or pytest.skip(f"needs {name}"))
    return made._replace(runner=(*runner, "--offline", *source))


def _prepare(directory: Path, home: Path) -> Installed:
    made = Installed(directory / "venv", directory / "work", home)
    made.working_directory.mkdir()
    return made


def _run_online(*command: str) -> None:
    """Run a command with the proxies and package indexes of this environment."""
    subprocess.run(command, env=environ(), stdout=subprocess.DEVNULL, check=True, timeout=_TIMEOUT_SECONDS)
