"""The fault suite finds bugs that were put into a running registry, and says what they are."""

from pathlib import Path

import pytest

from tests.faults.suite.planted import BUGS
from tests.faults.suite.run import run_once

FOUND_BY = {
    "dropped-event": ("none", 1, "watch: ", "was told a hole"),
    "repeated-event": ("none", 1, "watch: ", "was told a repetition"),
    "lost-write": ("none", 1, "acknowledged: ", "told to nobody"),
    "repeated-revision": ("none", 1, "revisions: ", "two writes were answered with one revision"),
    "early-expiry": ("none", 1, "leases: ", "too early"),
}
"""Bug: the fault and the seed by which it shows, and the words that tell it."""


def test_each_bug_is_looked_for() -> None:
    assert FOUND_BY.keys() == BUGS.keys()


@pytest.mark.parametrize("bug", FOUND_BY)
async def test_a_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    fault, seed, rule, words = FOUND_BY[bug]
    result, _ = await run_once([fault], seed, tmp_path, module=("tests.faults.suite.planted", bug))
    assert [found for found in result.violations if found.startswith(rule) and words in found], result
