"""A share of the fault suite: whatever fails, promises are kept. ``make faults`` runs all of it, with many seeds."""

from pathlib import Path

import pytest

from tests.faults.suite.catalogue import CATALOGUE, mixture, possible
from tests.faults.suite.run import run_once

SEED = 1
ALWAYS = (
    "registry-killed",
    "redis-killed",
    "redis-paused",
    "flushall",
    "stream-trimmed",
    "clock-jump",
    "link-half-open",
)
"""One of each kind that is over in seconds; Sentinel and clusters have tests of their own beside this one."""


async def kept(names: list[str], directory: Path) -> None:
    result, history = await run_once(names, SEED, directory)
    print(result)
    assert result.violations == []
    # A run in which nothing happened keeps every promise.
    assert result.acknowledged > 50
    assert result.changes > 50
    assert len(history.beliefs) == 3


@pytest.mark.parametrize("name", ALWAYS)
async def test_promises_are_kept_under(name: str, tmp_path: Path) -> None:
    if why := possible(CATALOGUE[name]):
        pytest.skip(why)
    await kept([name], tmp_path)


async def test_promises_are_kept_under_a_mix_of_faults(tmp_path: Path) -> None:
    names = mixture(SEED)
    assert len(names) > 1
    await kept(names, tmp_path)


def test_a_mix_is_told_by_its_seed_and_has_no_two_faults_of_one_thing() -> None:
    assert mixture(SEED) == mixture(SEED)
    mixes = [mixture(seed) for seed in range(200)]
    for mix in mixes:
        groups = [CATALOGUE[name].group for name in mix]
        assert len(set(groups)) == len(groups) > 1
    assert {name for mix in mixes for name in mix} == {
        fault.name for fault in CATALOGUE.values() if fault.group and not possible(fault)
    }
