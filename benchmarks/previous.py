"""The registry as it was at an earlier commit, so that a bound can compare two versions in one run."""

import asyncio
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Final

from benchmarks.processes import Served, served

BASELINE: Final = "8fcd31480ae6ebe81eb212ce51e5f33bb78eb459"
"""The version before registrations and REST were made faster."""
_ROOT: Final = Path(__file__).resolve().parents[1]
_TREES: Final = _ROOT / "build" / "previous"


async def is_available(commit: str = BASELINE) -> bool:
    """Return whether this checkout has the commit; a shallow clone or an archive has not."""
    return await _git("cat-file", "-e", f"{commit}^{{commit}}") is not None


async def tree_of(commit: str = BASELINE) -> Path:
    """Return the source tree of a commit below ``build/previous``; extract it unless it is there."""
    tree = _TREES / commit
    if not tree.exists():
        archive = await _git("archive", commit)
        if archive is None:
            raise RuntimeError(f"git cannot read commit {commit}")
        unfinished = tree.with_name(f"{commit}.{os.getpid()}")
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(unfinished, filter="data")
        unfinished.rename(tree)
    return tree


@asynccontextmanager
async def served_previous(folder: Path, *flags: str, commit: str = BASELINE) -> AsyncIterator[Served]:
    """Run the registry of an earlier commit as ``served`` runs the current one, with the same installed dependencies.

    The two versions then differ in the project's own code alone.
    """
    async with served(folder, *flags, tree=await tree_of(commit)) as one:
        yield one


async def _git(*arguments: str) -> bytes | None:
    """Return the output of git, or ``None`` if it fails."""
    try:
        process = await asyncio.create_subprocess_exec(
            # The owner of the checkout may be another user, which git refuses by default.
            *("git", "-c", "safe.directory=*", "-C", str(_ROOT), *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return None
    output, _ = await process.communicate()
    return None if process.returncode else output
