"""Printing of results, and generation of the benchmark page."""

import asyncio
import os
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Final, NamedTuple

from benchmarks import etcd

_PACKAGES: Final = ("grpcio", "protobuf", "redis", "hiredis", "uvloop", "aiohttp")
_PROGRAMS: Final = {
    "redis-server": ("--version", r"v=([\d.]+)"),
    "h2load": ("--version", r"nghttp2/([\d.]+)"),
    "go": ("version", r"go([\d.]+)"),
}


_SECTION: Final = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_INTRODUCTION: Final = """\
The benchmarks measure ratios. Client, server, Redis and the compared systems share the processors of one machine, so an
absolute value depends on that machine and its other load, and the load generator uses half of the processors. A
**ratio** compares two sides measured in alternating rounds of one run, a few seconds apart; its result is the median of
the rounds. A row that appears several times has the results of one round each.

- A *bare echo*, *loop* or *handler* is the same library (grpc.aio, aiohttp) that only returns or writes the same bytes:
  the least that the registry can cost. A ratio of 0.9 means that the registry's own code costs a tenth. The bare
  program uses the library's defaults, whereas a busy registry schedules its threads for throughput
  ([ADR 0025](adr/0025-batch-scheduling-under-load.md)), so the registry can be faster.
- *etcd* is the compared system: one node of the version that `benchmarks/etcd/go.mod` pins, which the benchmark builds,
  with its data in memory, called for the same task by the same compiled client.
- A **bound** is a target of the project: `make bench` fails if a value misses it. Values without a bound are
  informational.

`python -m benchmarks NAME` measures one scenario, and `--page docs/benchmarks.md` replaces its section of this page. A
scenario is skipped if a tool that it needs (Go, h2load, redis-server) is missing; the report names the tool."""
_WIDTH: Final = 120
_BAR: Final = 40  # characters


class _Row(NamedTuple):
    label: str
    value: str
    bound: str
    verdict: str


class _Scenario(NamedTuple):
    name: str
    about: str
    parts: list[str | _Row]
    """Rows, and text between them: titles and charts."""


class Report:
    """Prints each result with its bound, and collects the results for the page."""

    def __init__(self, rounds: int, openings: Sequence[Callable[[dict[str, str]], str]] = ()) -> None:
        """Create a report.

        Args:
            rounds: Number of rounds, for the command on the page.
            openings: Return the parts before the sections, from the text of all sections.
        """
        self.failed = 0
        self._rounds = rounds
        self._openings = openings
        self._machine: list[str] = []
        self._scenarios: list[_Scenario] = []

    async def machine(self) -> None:
        """Record and print the machine and the versions of the software."""
        packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
        programs = [f"{name} {found}" for name in _PROGRAMS if (found := await _version_of(name))]
        if etcd.is_available():
            programs.append(f"etcd {etcd.VERSION}")
        self._machine = [
            f"{os.cpu_count()} CPUs ({_processor()}), {_memory()} of memory, {platform.system()}",
            f"Python {platform.python_version()}, {packages}",
            ", ".join(programs),
        ]
        print("\n".join(self._machine))

    def scenario(self, name: str, about: str) -> None:
        """Start a scenario, described by ``about``."""
        self._scenarios.append(_Scenario(name, about, []))

    def title(self, text: str) -> None:
        """Start a table of the scenario."""
        self._scenarios[-1].parts.append(f"### {text}")
        print(f"\n{text}")

    def skipped(self, title: str, missing: str) -> None:
        """Record that a scenario is skipped because something is missing on this machine."""
        self.title(title)
        self.line(f"skipped, missing: {missing}", "")

    def line(self, label: str, value: str) -> None:
        """Print a result without a bound."""
        self._scenarios[-1].parts.append(_Row(label, value, "", ""))
        print(f"  {label:<58} {value:>14}", flush=True)

    def at_most(self, label: str, value: float, bound: float, unit: str) -> None:
        """Print a result with an upper bound."""
        self._bounded_line(label, value, f"<= {bound:g} {unit}".rstrip(), unit, ok=value <= bound)

    def at_least(self, label: str, value: float, bound: float, unit: str = "") -> None:
        """Print a result with a lower bound."""
        self._bounded_line(label, value, f">= {bound:g} {unit}".rstrip(), unit, ok=value >= bound)

    def chart(self, title: str, bars: Sequence[tuple[str, float, str]]) -> None:
        """Draw a bar chart.

        Args:
            title: Title of the chart.
            bars: Name, length as a share of the longest bar (0 to 1), and label of each bar.
        """
        lines = [f"{name:>12} {'█' * max(1, round(share * _BAR)):<{_BAR}} {value}" for name, share, value in bars]
        self._scenarios[-1].parts.append("\n".join((f"{title}:", "", "```text", *lines, "```")))
        print("\n".join((f"  {title}", *lines)))

    def page(self, earlier: str, order: Sequence[str]) -> str:
        """Return the page in Markdown.

        Args:
            earlier: Previous text of the page; sections of scenarios that were not measured are kept.
            order: Names of all scenarios, in the order of their sections.
        """
        sections = {name: f"## {name}\n{text}" for name, text in _SECTION.findall(earlier)}
        sections |= {each.name: self._section(each) for each in self._scenarios}
        head = (
            "# Benchmarks",
            "Generated by `make bench`; do not edit by hand.",
            *(opening(sections) for opening in self._openings),
            f"## Measurement method\n\n{_INTRODUCTION}",
        )
        return "\n\n".join((*head, *(sections[name].rstrip() for name in order if name in sections))) + "\n"

    def _section(self, scenario: _Scenario) -> str:
        command = f"`python -m benchmarks {scenario.name} --rounds {self._rounds}`"
        measured = f"{command}, {datetime.now(UTC):%Y-%m-%d}: {'; '.join(self._machine)}."
        lines = [f"## {scenario.name}", "", fill(scenario.about, _WIDTH), "", fill(measured, _WIDTH)]
        for previous, part in pairwise(("", *scenario.parts)):
            if isinstance(part, str):
                lines += ["", part]
                continue
            if isinstance(previous, str):
                lines += ["", "| | | bound | |", "|---|---:|---|---|"]
            lines.append(f"| {part.label} | {part.value} | {part.bound} | {part.verdict} |")
        return "\n".join(lines)

    def _bounded_line(self, label: str, value: float, bound: str, unit: str, *, ok: bool) -> None:
        self.failed |= not ok
        verdict = "ok" if ok else "MISSED"
        self._scenarios[-1].parts.append(_Row(label, f"{value:.4g} {unit}".rstrip(), bound, verdict))
        print(f"  {label:<58} {value:>10.4g} {unit:<3} {bound:<12} {verdict}", flush=True)


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
