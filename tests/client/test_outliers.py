"""Ejection of services whose calls fail."""

import pytest

from registry_client.outliers import FAILURES_TO_EJECT, MAX_EJECTION_SECONDS, Outliers, max_ejected
from tests.support.manual_clock import ManualClock


def fail(outliers: Outliers, times: int = FAILURES_TO_EJECT) -> list[bool]:
    return [outliers.record("a", failed=True) for _ in range(times)]


def test_consecutive_failures_eject_a_service() -> None:
    outliers = Outliers(ManualClock())
    assert fail(outliers, FAILURES_TO_EJECT - 1) == [False] * (FAILURES_TO_EJECT - 1)
    outliers.record("a", failed=False)
    assert fail(outliers) == [False] * (FAILURES_TO_EJECT - 1) + [True]
    assert list(outliers.ejected) == ["a"]
    assert fail(outliers, 9) == [False] * 9  # calls that began before the ejection


def test_each_further_failure_ejects_for_longer() -> None:
    clock = ManualClock()
    outliers = Outliers(clock)
    fail(outliers)
    for seconds in (30, 60, 90):
        clock.now += seconds - 1
        assert outliers.readmit_due() == []
        clock.now += 1
        assert outliers.readmit_due() == ["a"]
        assert not outliers.ejected
        assert fail(outliers, 1) == [True]
    for _ in range(20):
        clock.now += MAX_EJECTION_SECONDS
        assert outliers.readmit_due() == ["a"]
        fail(outliers, 1)


def test_success_ends_the_ejection_and_clears_the_history() -> None:
    outliers = Outliers(ManualClock())
    fail(outliers)
    assert outliers.record("a", failed=False)
    assert not outliers.ejected
    assert fail(outliers, 1) == [False]
    outliers.discard("a")
    assert (outliers._failures, outliers._until) == ({}, {})


@pytest.mark.parametrize(("services", "expected"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (100, 50)])
def test_at_most_half_of_the_services_are_ejected(services: int, expected: int) -> None:
    assert max_ejected(services) == expected
