"""How figures are printed, and the page that they make."""

import asyncio
import os
import platform
import re
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

_PACKAGES: Final = ("grpcio", "protobuf", "redis", "hiredis", "uvloop", "aiohttp")
_PROGRAMS: Final = {
    "redis-server": ("--version", r"v=([\d.]+)"),
    "etcd": ("--version", r"etcd Version: ([\d.]+)"),
    "h2load": ("--version", r"nghttp2/([\d.]+)"),
    "go": ("version", r"go([\d.]+)"),
}


class _Row(NamedTuple):
    what: str
    value: str
    bound: str
    kept: str


class Report:
    """Prints figures as they come, each with its bound, and keeps them for the page."""

    def __init__(self) -> None:
        self.failed = 0
        self._machine: list[str] = []
        self._scenarios: list[tuple[str, list[_Row]]] = []

    async def machine(self) -> None:
        """Says what was measured on, and with what."""
        packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        programs = ", ".join([f"{name} {found}" for name in _PROGRAMS if (found := await _version_of(name))])
        self._machine = [
            f"{os.cpu_count()} CPUs ({_processor()}), {_memory()} of memory, {platform.system()}",
            f"Python {platform.python_version()}, {packages}",
            programs,
        ]
        print("\n".join(self._machine))

    def title(self, text: str) -> None:
        """Begins a scenario."""
        self._scenarios.append((text, []))
        print(f"\n{text}")

    def skipped(self, title: str, missing: str) -> None:
        """Says that a scenario cannot be measured here."""
        self._scenarios.append((title, [_Row(f"skipped, without {missing}", "", "", "")]))
        print(f"\n{title}: skipped, without {missing}")

    def line(self, what: str, value: str) -> None:
        """Prints a figure without a bound."""
        self._scenarios[-1][1].append(_Row(what, value, "", ""))
        print(f"  {what:<58} {value:>14}", flush=True)

    def at_most(self, what: str, value: float, bound: float, unit: str) -> None:
        """Prints a figure that has to be small."""
        self._judged(what, value, f"<= {bound:g} {unit}".rstrip(), unit, ok=value <= bound)

    def at_least(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """Prints a figure that has to be large."""
        self._judged(what, value, f">= {bound:g} {unit}".rstrip(), unit, ok=value >= bound)

    def page(self, command: str) -> str:
        """All of it in Markdown."""
        lines = [
            "# Benchmarks",
            "",
            f"Made by `{command}` on {datetime.now(UTC):%Y-%m-%d}; not written by hand.",
            "",
            *(f"- {line}" for line in self._machine if line),
            "",
            "Client, server and Redis share the processors. Absolute figures are of that machine and that hour; what",
            "counts are ratios, whose two sides are measured in alternating rounds of one run.",
        ]
        for title, rows in self._scenarios:
            lines += ["", f"## {title}", "", "| | | bound | |", "|---|---:|---|---|"]
            lines += [f"| {row.what} | {row.value} | {row.bound} | {row.kept} |" for row in rows]
        return "\n".join(lines) + "\n"

    def _judged(self, what: str, value: float, bound: str, unit: str, *, ok: bool) -> None:
        self.failed |= not ok
        kept = "ok" if ok else "NOT KEPT"
        self._scenarios[-1][1].append(_Row(what, f"{value:.4g} {unit}".rstrip(), bound, kept))
        print(f"  {what:<58} {value:>10.4g} {unit:<3} {bound:<12} {kept}", flush=True)


async def _version_of(program: str) -> str | None:
    flag, pattern = _PROGRAMS[program]
    if shutil.which(program) is None:
        return None
    process = await asyncio.create_subprocess_exec(program, flag, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    found = re.search(pattern, output.decode())
    return found[1] if found else None


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return found[1] if found else platform.machine()


def _memory() -> str:
    found = re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo"))
    return f"{int(found[1]) / 1024 / 1024:.0f} GiB" if found else "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:  # not Linux
        return ""
