"""Record the output of the commands in ``docs/cli.md`` and draw ``docs/images/session.svg``: ``make docs``.

The commands run on a new registry, as in ``tests/e2e/test_readme.py``. Output that differs from the document only in
times and ages is not replaced, so that repeated runs change nothing. The image uses fixed times.
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
"""The commands in the image. Some exit with a status other than zero on purpose."""
_FIXED_TIMES: Final = (
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "12:00:00"),
    (re.compile(r"\b(?:59m(?:\d+s)?|1h)()( *)"), "59m"),
    (re.compile(r"\b(?:\d+m)?\d+s\b( ago)?( *)"), "1s"),
)
"""Patterns of times, ages and leases, and their fixed replacements in the image."""
_COLUMNS: Final = 112


async def main() -> None:
    """Update the document and its image."""
    DOCUMENT.write_text(await record_output(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(await draw_session(), encoding="utf-8")


async def record_output(document: str) -> str:
    """Return the document with the current output of its commands, where it differs from the recorded output."""
    lines = document.splitlines()
    async with as_documented() as substitutions:
        env = environment(substitutions)
        results: list[Result] = []
        for block in blocks(document):
            if not (block.skip or block.background):
                results += await run(block, substitutions, directory=ROOT, env=env, python=sys.executable)
    for result in reversed(results):  # backwards, so that line numbers stay valid
        expected = result.command.expected
        if expected is None or matches(expected, result.printed):
            continue
        first = result.command.line - 1 + result.command.text.count("\n") + 1
        lines[first : first + len(expected)] = [line.rstrip() for line in result.printed]
    return "\n".join(lines) + "\n"


async def draw_session() -> str:
    """Return the image of a session as SVG, with fixed times."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="standard")
    async with as_documented() as substitutions:
        env = environment(substitutions)
        for command in SESSION:
            console.print(Text("$ ", "bold cyan") + Text(command), soft_wrap=True)
            for line in await _run_in_colour(command, substitutions, env):
                console.print(Text.from_ansi(line), soft_wrap=True)
    return console.export_svg(title="ossa-registry", unique_id="session")


async def _run_in_colour(command: str, substitutions: Substitutions, env: Mapping[str, str]) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *shlex.split(substitutions.apply(command)),
        cwd=ROOT,
        env={**env, "FORCE_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    text = substitutions.undo(printed.decode())
    for pattern, fixed in _FIXED_TIMES:
        text = pattern.sub(partial(_pad_replacement, fixed), text)
    return [line.rstrip() for line in text.splitlines()]


def _pad_replacement(fixed: str, match: re.Match[str]) -> str:
    """Return the replacement, padded to the length of the match to keep columns aligned."""
    ago = match[1] if match.lastindex else ""
    return f"{fixed}{ago or ''}".ljust(len(match[0]))


if __name__ == "__main__":
    asyncio.run(main())
