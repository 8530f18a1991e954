"""Writes into ``docs/cli.md`` what its commands print, and draws ``docs/images/session.svg``: ``make docs``.

The commands are run on a fresh registry, as ``tests/e2e/test_readme.py`` runs them. What is level with the document
already stays as it is, so that times and ages do not change with each run. The picture has fixed times in their place.
"""

import asyncio
import io
import re
import shlex
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from tests.support.console import Result, Substitutions, blocks, matches, run
from tests.support.documented import as_documented, environment

ROOT: Final = Path(__file__).resolve().parents[1]
DOCUMENT: Final = ROOT / "docs" / "cli.md"
PICTURE: Final = ROOT / "docs" / "images" / "session.svg"

SESSION: Final = (
    "ossa-registry register summarizer http://10.0.0.9:8080 --version 1.4.0 --health-check heartbeat --tag nlp",
    "ossa-registry register -f examples/agents.yaml",
    "ossa-registry list",
    "ossa-registry maintenance on translator-1 --reason 'new model'",
    "ossa-registry health translator-1 translator-2",
    "ossa-registry watch --snapshot --count 3 --quiet",
)
"""What is drawn. That a status is not zero is part of it."""
_FIXED: Final = (
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "12:00:00"),
    (re.compile(r"\b(?:59m(?:\d+s)?|1h)()( *)"), "59m"),
    (re.compile(r"\b(?:\d+m)?\d+s\b( ago)?( *)"), "1s"),
)
"""Times, ages and leases, and what stands there instead."""
_WIDTH: Final = 112


async def main() -> None:
    """Brings the document and its picture up to date."""
    DOCUMENT.write_text(await recorded(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(await drawn(), encoding="utf-8")


async def recorded(document: str) -> str:
    """The document with what its commands print now, where that is not level with what it says."""
    lines = document.splitlines()
    async with as_documented() as substitutions:
        env = environment(substitutions)
        results: list[Result] = []
        for block in blocks(document):
            if not (block.skip or block.background):
                results += await run(block, substitutions, directory=ROOT, env=env, python=sys.executable)
    for result in reversed(results):  # from the end, so that line numbers hold
        expected = result.command.expected
        if expected is None or matches(expected, result.printed):
            continue
        first = result.command.line - 1 + result.command.text.count("\n") + 1
        lines[first : first + len(expected)] = [line.rstrip() for line in result.printed]
    return "\n".join(lines) + "\n"


async def drawn() -> str:
    """The picture of a session, with the same times whenever it is drawn."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="standard")
    async with as_documented() as substitutions:
        env = environment(substitutions)
        for command in SESSION:
            console.print(Text("$ ", "bold cyan") + Text(command), soft_wrap=True)
            for line in await _colored(command, substitutions, env):
                console.print(Text.from_ansi(line), soft_wrap=True)
    return console.export_svg(title="ossa-registry", unique_id="session")


async def _colored(command: str, substitutions: Substitutions, env: Mapping[str, str]) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *shlex.split(substitutions.apply(command)),
        cwd=ROOT,
        env={**env, "FORCE_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    text = substitutions.undo(printed.decode())
    for pattern, fixed in _FIXED:
        text = pattern.sub(partial(_instead, fixed), text)
    return [line.rstrip() for line in text.splitlines()]


def _instead(fixed: str, match: re.Match[str]) -> str:
    """As long as what it replaces, so that columns stay where they are."""
    ago = match[1] if match.lastindex else ""
    return f"{fixed}{ago or ''}".ljust(len(match[0]))


if __name__ == "__main__":
    asyncio.run(main())
