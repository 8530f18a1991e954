"""Wheels built from the checkout, and virtual environments that contain them but not the checkout."""

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

_TIMEOUT_SECONDS = 240.0


class Installed(NamedTuple):
    """A virtual environment with a wheel, and a working directory, both outside the checkout."""

    environment: Path
    working_directory: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment and return its output. Fails if the exit code is not 0."""
        command = [str(self.environment / "bin" / program), *arguments]
        return subprocess.run(
            command,
            cwd=self.working_directory,
            env=environ(),
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


def install(wheel: Path, directory: Path) -> Installed:
    """Install a wheel into a new virtual environment."""
    made = Installed(directory / "venv", directory / "work")
    made.working_directory.mkdir()
    venv.create(made.environment, with_pip=True)
    made.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    return made
