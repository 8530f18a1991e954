"""Running processes, read from /proc because ps and pgrep are not installed everywhere."""

import asyncio
import sys
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
