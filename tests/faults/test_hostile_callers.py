"""Hostile callers beside honest ones, for a short time. ``make faults`` runs it for longer and judges the latency."""

from pathlib import Path

from tests.faults.hostile.scenario import run


async def test_honest_callers_notice_no_attack(tmp_path: Path) -> None:
    report = await run(4, tmp_path)
    print(report)
    assert report.violations == []
    assert len(report.outcomes) == 5
    assert all(report.outcomes.values())
    assert report.added_mib < 100  # the short first attack does not reach each limit
