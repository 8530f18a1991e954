"""What runs on this machine, told by /proc: neither ps nor pgrep is everywhere."""

from pathlib import Path


def children_of(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    return [int(child) for child, (state, parent) in _all().items() if parent == str(pid) and state != "Z"]


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody asked for its exit code does not."""
    return _all().get(str(pid), ("Z", ""))[0] != "Z"


def command_of(pid: int) -> str:
    """Command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _all() -> dict[str, tuple[str, str]]:
    """Process id to state and parent."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent, *_ = (folder / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # it has just ended
                continue
            found[folder.name] = (state, parent)
    return found
