"""The commands in the README and in docs/ print the documented output."""

import sys
from pathlib import Path

import pytest

from tests.support.console import Block, blocks, missing_tools, run
from tests.support.documented import as_documented, environment

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {
    str(document.relative_to(ROOT)): found
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if (found := blocks(document.read_text(encoding="utf-8")))
}


@pytest.mark.parametrize("document", DOCUMENTS)
async def test_commands_print_the_documented_output(document: str, subtests: pytest.Subtests) -> None:
    missing: list[str] = []
    async with as_documented() as substitutions:
        env = environment(substitutions)
        for block in DOCUMENTS[document]:
            with subtests.test(f"{document}:{block.line}"):
                skip_if_not_runnable(block, missing or (missing := missing_tools(block, substitutions)))
                for result in await run(block, substitutions, directory=ROOT, env=env, python=sys.executable):
                    assert result.fault == "", f"{document}:{result.command.line}: {result.command.text}"


def skip_if_not_runnable(block: Block, missing: list[str]) -> None:
    if block.background:
        pytest.skip("the server of the test replaces it")
    if block.skip:
        pytest.skip(block.skip)
    if missing:
        # Later blocks depend on what it would have done.
        pytest.skip(f"{', '.join(missing)}: not in PATH, needed here or before")
