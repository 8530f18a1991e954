"""How figures are printed, and the page that they make."""

import asyncio
import os
import platform
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Final, NamedTuple

_PACKAGES: Final = ("grpcio", "protobuf", "redis", "hiredis", "uvloop", "aiohttp")
_PROGRAMS: Final = {
    "redis-server": ("--version", r"v=([\d.]+)"),
    "etcd": ("--version", r"etcd Version: ([\d.]+)"),
    "h2load": ("--version", r"nghttp2/([\d.]+)"),
    "go": ("version", r"go([\d.]+)"),
}


_SECTION: Final = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_INTRODUCTION: Final = """\
What is measured is ratios. Client, server, Redis and peers share the processors of one machine, so an absolute figure
is of that machine and that hour, and half of it is the load generator's. A **ratio** has two sides that were measured
in alternating rounds of one run, a few seconds apart; the median of the rounds counts.

- A *bare echo*, *loop* or *handler* is the same library (grpc.aio, aiohttp) doing nothing but to answer, or write, the
  same bytes: the floor on which the registry stands. A ratio of 0.9 to it says that all of the registry costs a tenth.
  It runs as the library comes; a busy registry has its threads scheduled for throughput
  ([ADR 0025](adr/0025-a-busy-server-is-scheduled-for-throughput.md)), so it can be ahead.
- *etcd* is the peer: one node, its data in memory, asked for the same with the same compiled client.
- A **bound** is a promise of the project: `make bench` fails where one is not kept. Figures without a bound inform.

`python -m benchmarks NAME` measures one scenario again, and with `--page docs/benchmarks.md` it writes its part of this
page anew. What a scenario needs and does not find (Go, etcd, h2load, redis-server) it names, and is left out."""
_WIDTH: Final = 120
_BAR: Final = 40  # characters


class _Row(NamedTuple):
    what: str
    value: str
    bound: str
    kept: str


class _Scenario(NamedTuple):
    name: str
    about: str
    parts: list[str | _Row]
    """Rows, and between them text: titles, charts."""


class Report:
    """Prints figures as they come, each with its bound, and keeps them for the page."""

    def __init__(self, rounds: int) -> None:
        self.failed = 0
        self._rounds = rounds
        self._machine: list[str] = []
        self._scenarios: list[_Scenario] = []

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

    def scenario(self, name: str, about: str) -> None:
        """Begins a scenario: ``about`` says what it shows, and where a peer is ahead and why."""
        self._scenarios.append(_Scenario(name, about, []))

    def title(self, text: str) -> None:
        """Begins a table of the scenario."""
        self._scenarios[-1].parts.append(f"### {text}")
        print(f"\n{text}")

    def skipped(self, title: str, missing: str) -> None:
        """Says that a scenario cannot be measured here."""
        self.title(title)
        self.line(f"skipped, without {missing}", "")

    def line(self, what: str, value: str) -> None:
        """Prints a figure without a bound."""
        self._scenarios[-1].parts.append(_Row(what, value, "", ""))
        print(f"  {what:<58} {value:>14}", flush=True)

    def at_most(self, what: str, value: float, bound: float, unit: str) -> None:
        """Prints a figure that has to be small."""
        self._judged(what, value, f"<= {bound:g} {unit}".rstrip(), unit, ok=value <= bound)

    def at_least(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """Prints a figure that has to be large."""
        self._judged(what, value, f">= {bound:g} {unit}".rstrip(), unit, ok=value >= bound)

    def chart(self, title: str, bars: Sequence[tuple[str, float, str]]) -> None:
        """Draws bars: each with its name, its share of the longest, and what it stands for."""
        lines = [f"{name:>12} {'█' * max(1, round(share * _BAR)):<{_BAR}} {value}" for name, share, value in bars]
        self._scenarios[-1].parts.append("\n".join((f"{title}:", "", "```text", *lines, "```")))
        print("\n".join((f"  {title}", *lines)))

    def page(self, earlier: str, order: Sequence[str]) -> str:
        """All of it in Markdown.

        Args:
            earlier: The page as it was; of it, what was not measured this time stays.
            order: Names of all scenarios.
        """
        sections = {name: f"## {name}\n{text}" for name, text in _SECTION.findall(earlier)}
        sections |= {each.name: self._section(each) for each in self._scenarios}
        head = ("# Benchmarks", "Made by `make bench`, not written by hand.", _INTRODUCTION)
        return "\n\n".join((*head, *(sections[name].rstrip() for name in order if name in sections))) + "\n"

    def _section(self, scenario: _Scenario) -> str:
        command = f"`python -m benchmarks {scenario.name} --rounds {self._rounds}`"
        measured = f"{command}, {datetime.now(UTC):%Y-%m-%d}: {'; '.join(self._machine)}."
        lines = [f"## {scenario.name}", "", fill(scenario.about, _WIDTH), "", fill(measured, _WIDTH)]
        for before, part in pairwise(("", *scenario.parts)):
            if isinstance(part, str):
                lines += ["", part]
                continue
            if isinstance(before, str):
                lines += ["", "| | | bound | |", "|---|---:|---|---|"]
            lines.append(f"| {part.what} | {part.value} | {part.bound} | {part.kept} |")
        return "\n".join(lines)

    def _judged(self, what: str, value: float, bound: str, unit: str, *, ok: bool) -> None:
        self.failed |= not ok
        kept = "ok" if ok else "NOT KEPT"
        self._scenarios[-1].parts.append(_Row(what, f"{value:.4g} {unit}".rstrip(), bound, kept))
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
