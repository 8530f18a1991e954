"""Writes the table of runs to ``docs/reliability.md``."""

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from tests.faults.suite.catalogue import CATALOGUE
from tests.faults.suite.run import Result
from tests.support.redis_process import find_redis_server

BEGIN, END = "<!-- runs: begin -->", "<!-- runs: end -->"


def write_page(page: Path, results: Sequence[Result]) -> None:
    """Replace the table of runs on a page."""
    replace_section(page, (BEGIN, END), table(results))


def replace_section(page: Path, markers: tuple[str, str], text: str) -> None:
    """Replace the text between two markers of a page."""
    begin, end = markers
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{text.rstrip()}\n{end}{after}", encoding="utf-8")


def environment() -> str:
    """Return the machine and the versions that affect a run."""
    redis = subprocess.run([find_redis_server(), "--version"], capture_output=True, text=True, check=True)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    versions = f"Python {platform.python_version()}, grpcio {version('grpcio')}, Redis {redis.stdout.split()[2][2:]}"
    return f"{machine}, {versions}"


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table of the runs, with a row for each fault and one for the mixes."""
    days = sorted({result.day for result in results if result.day})
    commits = list(dict.fromkeys(result.commit for result in results if result.commit))
    when = f"{' to '.join(dict.fromkeys((days[0], days[-1])))}, at {', '.join(commits)}"
    lines = [
        f"{len(results)} runs, {when}; {environment()}.",
        "",
        "| Fault | Runs | Passed | Calls | Acknowledged writes | Calls without a response | Changes | New epochs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[str, list[Result]] = {name: [] for name in CATALOGUE}
    for result in results:
        groups.setdefault("mixes of two or three" if "+" in result.fault else result.fault, []).append(result)
    for name, group in groups.items():
        if group:
            passed = sum(not result.violations for result in group)
            sums = [sum(values) for values in zip(*map(_counts, group), strict=True)]
            title = f"`{name}`" if name in CATALOGUE else name
            cells = [title, len(group), passed, *sums]
            lines.append(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _counts(result: Result) -> tuple[int, ...]:
    return result.calls, result.acknowledged, result.unknown, result.changes, max(result.epochs - 1, 0)
