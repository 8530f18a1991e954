"""The fan-out benchmark with few watchers; `make bench` runs it with 1,000, and compares etcd."""

import pytest

from benchmarks import etcd, fanout, replay
from benchmarks.report import Report

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


async def test_steady_changes_reach_every_watcher(monkeypatch: pytest.MonkeyPatch) -> None:
    if not replay.is_available():
        pytest.skip("needs Go")
    monkeypatch.setattr(etcd, "is_available", lambda: False)
    await replay.build()
    report = Report(rounds=1)
    report.scenario("fanout", "")
    await fanout.measure_steady_rate(report, watchers=20, seconds=1)
    page = report.page("", ["fanout"])
    for name in ("registry", "bare loop"):
        assert f"| {name}: start of the change to its delivery: p50, p99, maximum | " in page
    assert "p99 of the delivery: ratio to the bare loop" in page
