"""Wheels built from the checkout, and virtual environments that have them and nothing of the checkout."""

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

_PATIENCE = 240.0


class Installed(NamedTuple):
    """A virtual environment with a wheel, and a directory to work in, both away from the checkout."""

    environment: Path
    elsewhere: Path

    def run(self, program: str, *arguments: str) -> str:
        """Runs a program of the environment, which must succeed, and gives what it prints."""
        command = [str(self.environment / "bin" / program), *arguments]
        return subprocess.run(
            command, cwd=self.elsewhere, env=environ(), stdout=subprocess.PIPE, text=True, check=True, timeout=_PATIENCE
        ).stdout


def environ() -> dict[str, str]:
    """The environment without what would lead back to the checkout."""
    ours = ("OSSA_REGISTRY_", "PYTHON", "VIRTUAL_ENV", "COV_", "COVERAGE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def built(project: Path, directory: Path) -> Path:
    """Builds the wheel of a project into an empty directory."""
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(directory), str(project)]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, check=False, timeout=_PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = directory.iterdir()
    return wheel


def install(wheel: Path, directory: Path) -> Installed:
    """Installs a wheel into a new virtual environment."""
    made = Installed(directory / "venv", directory / "elsewhere")
    made.elsewhere.mkdir()
    venv.create(made.environment, with_pip=True)
    made.run("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    return made
