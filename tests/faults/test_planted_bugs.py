"""The fault suite finds and names bugs that are patched into a running registry."""

from pathlib import Path

import pytest

from tests.faults.suite.planted import BUGS
from tests.faults.suite.run import run_once

FOUND_BY = {
    "dropped-event": ("none", 1, "watch: ", "received a gap"),
    "repeated-event": ("none", 1, "watch: ", "received a repetition"),
    "lost-write": ("none", 1, "acknowledged: ", "no watcher received"),
    "repeated-revision": ("none", 1, "revisions: ", "two writes have the same revision"),
    "early-expiry": ("none", 1, "leases: ", "too early"),
}
"""Maps each bug to a fault and a seed that expose it, and to the rule and words of the violation."""


def test_every_bug_has_an_expected_violation() -> None:
    assert FOUND_BY.keys() == BUGS.keys()


@pytest.mark.parametrize("bug", FOUND_BY)
async def test_planted_bug_is_found(bug: str, tmp_path: Path) -> None:
    fault, seed, rule, words = FOUND_BY[bug]
    result, _ = await run_once([fault], seed, tmp_path, module=("tests.faults.suite.planted", bug))
    assert [found for found in result.violations if found.startswith(rule) and words in found], result
