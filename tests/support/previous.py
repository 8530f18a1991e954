"""The previous version of the project, from the history of this checkout."""

import io
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.support.server import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PREVIOUS: str = PROJECT["tool"]["ossa-registry"]["previous"]


def previous_source(directory: Path) -> Path:
    """Extract the source tree of the previous version into a directory; skip the test without the history."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and the history of the project; this is an archive of it")
    # The owner of the checkout may be another user, which git refuses by default.
    archive = subprocess.run(
        [git, "-c", "safe.directory=*", "-C", ROOT, "archive", PREVIOUS], capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"git fetch --unshallow --tags is needed for {PREVIOUS}: {archive.stderr.decode()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    return directory
