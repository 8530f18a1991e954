"""A short soak. ``python -m tests.faults.suite.soak`` runs for an hour, under Sentinel."""

import random
from pathlib import Path

import pytest

from tests.faults.suite.report import replace_section
from tests.faults.suite.soak import MARKERS, Plan, soak

pytestmark = pytest.mark.slow


async def test_short_soak_with_a_killed_registry_keeps_its_promises(tmp_path: Path) -> None:
    plan = Plan(4, "alone", ("registry 2 killed",), 4, services=50, streams=2, watchers=4, churning=10)
    record = await soak(plan, tmp_path, random.Random(1))
    assert record.failures == dict.fromkeys(record.failures, 0)
    assert [period.action for period in record.periods] == ["registry 2 killed"]
    assert record.periods[0].calls > 50
    assert record.facts["registrations of agents that come and go"] != "0"

    page = tmp_path / "page.md"
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*MARKERS))
    replace_section(page, MARKERS, record.markdown())
    assert "| registry 2 killed | " in page.read_text()
    assert "old" not in page.read_text()
