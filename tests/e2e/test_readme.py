"""The commands in the documents do what the documents say."""

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
async def test_every_command_prints_what_the_document_says(document: str, subtests: pytest.Subtests) -> None:
    missing: list[str] = []
    async with as_documented() as substitutions:
        env = environment(substitutions)
        for block in DOCUMENTS[document]:
            with subtests.test(f"{document}:{block.line}"):
                skip_if_not_to_be_run(block, missing or (missing := missing_tools(block, substitutions)))
                for result in await run(block, substitutions, directory=ROOT, env=env, python=sys.executable):
                    assert result.fault == "", f"{document}:{result.command.line}: {result.command.text}"


def skip_if_not_to_be_run(block: Block, missing: list[str]) -> None:
    if block.background:
        pytest.skip("a server runs already")
    if block.skip:
        pytest.skip(block.skip)
    if missing:
        # What it would have done is what those after it rest upon.
        pytest.skip(f"{', '.join(missing)}: not in PATH, needed here or before")
