"""A selection of the fault suite. ``make faults`` runs all faults with many seeds."""

from pathlib import Path

import pytest

from tests.faults.suite.catalogue import CATALOGUE, mixture, reason_to_skip
from tests.faults.suite.run import run_once

SEED = 1
QUICK_FAULTS = (
    "registry-killed",
    "redis-killed",
    "redis-paused",
    "flushall",
    "stream-trimmed",
    "clock-jump",
    "link-half-open",
)
"""One fault of each kind that takes seconds. Sentinel and clusters have separate tests."""


async def check_run(names: list[str], directory: Path) -> None:
    result, history = await run_once(names, SEED, directory)
    print(result)
    assert result.violations == []
    # A run without calls violates no promise.
    assert result.acknowledged > 50
    assert result.changes > 50
    assert len(history.final_states) == 3


@pytest.mark.parametrize("name", QUICK_FAULTS)
async def test_fault_violates_no_promise(name: str, tmp_path: Path) -> None:
    if why := reason_to_skip(CATALOGUE[name]):
        pytest.skip(why)
    await check_run([name], tmp_path)


async def test_mixed_faults_violate_no_promise(tmp_path: Path) -> None:
    names = mixture(SEED)
    assert len(names) > 1
    await check_run(names, tmp_path)


def test_mix_depends_on_its_seed_and_has_distinct_groups() -> None:
    assert mixture(SEED) == mixture(SEED)
    mixes = [mixture(seed) for seed in range(200)]
    for mix in mixes:
        groups = [CATALOGUE[name].group for name in mix]
        assert len(set(groups)) == len(groups) > 1
    assert {name for mix in mixes for name in mix} == {
        fault.name for fault in CATALOGUE.values() if fault.group and not reason_to_skip(fault)
    }
