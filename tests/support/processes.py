"""Running processes, read from /proc because ps and pgrep are not installed everywhere."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.support.waiting import TIMEOUT_SECONDS, until


def children_of(pid: int) -> list[int]:
    """Return the process ids of the running children of a process."""
    return [int(child) for child, (state, parent) in _all().items() if parent == str(pid) and state != "Z"]


def runs(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    return _all().get(str(pid), ("Z", ""))[0] != "Z"


def command_of(pid: int) -> str:
    """Return the command line of a process, or an empty string if it has exited."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


async def run_to_end(
    *command: str | Path,
    max_seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stderr_only: bool = False,
) -> tuple[int, str]:
    """Run a command and return its exit code and output, with standard error in it or nothing but that.

    Raises:
        TimeoutError: It did not end in time, and was killed.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=None if stderr_only else asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if stderr_only else asyncio.subprocess.STDOUT,
        cwd=cwd,
        env=env,
    )
    try:
        async with asyncio.timeout(max_seconds):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, ((errors if stderr_only else output) or b"").decode(errors="replace")


async def assert_ends_with_parent(parent_code: str) -> None:
    """Run a program that prints the process id of a child of it, kill the program, and wait until the child ends."""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", parent_code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    async with asyncio.timeout(TIMEOUT_SECONDS):
        child = int(await parent.stdout.readline())
        assert runs(child)
        parent.kill()
        await parent.wait()
    await until(lambda: not runs(child))


def _all() -> dict[str, tuple[str, str]]:
    """Return state and parent of each process by its process id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent, *_ = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # the process has exited
                continue
            found[folder.name] = (state, parent)
    return found
