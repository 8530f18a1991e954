import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_server.health.counters import LATENESS_BOUNDS, ProbeCounters
from registry_server.probes import Outcome, OutcomeKind

OK = Outcome(OutcomeKind.OK, 0.1)


def test_counters_start_at_zero() -> None:
    counters = ProbeCounters()
    assert (
        counters.late == counters.lateness.sum == sum(counters.lateness.counts) == sum(counters.outcomes.values()) == 0
    )
    assert len(counters.lateness.counts) == len(LATENESS_BOUNDS) + 1


@pytest.mark.parametrize(
    ("lateness", "index"),
    [
        (0.0, 0),
        (-0.001, 0),
        (0.01, 0),
        (0.010001, 1),
        (0.025, 1),
        (0.3, 5),
        (1.0, 6),
        (1.5, 7),
        (10.0, 9),
        (10.1, 10),
        (3600.0, 10),
    ],
)
def test_lateness_is_counted_in_the_first_bucket_that_contains_it(lateness: float, index: int) -> None:
    counters = ProbeCounters()
    counters.count_probe(OK, lateness)
    assert [i for i, count in enumerate(counters.lateness.counts) if count] == [index]
    assert index == len(LATENESS_BOUNDS) or lateness <= LATENESS_BOUNDS[index]
    assert counters.lateness.sum == lateness


@pytest.mark.parametrize(("lateness", "late"), [(0.0, 0), (1.0, 0), (1.001, 1)])
def test_only_a_probe_more_than_a_second_after_its_due_time_is_late(lateness: float, late: int) -> None:
    counters = ProbeCounters()
    counters.count_probe(OK, lateness)
    assert counters.late == late


@given(st.lists(st.floats(0, 100)))
def test_every_due_probe_is_counted_in_exactly_one_bucket(latenesses: list[float]) -> None:
    counters = ProbeCounters()
    for lateness in latenesses:
        counters.count_probe(OK, lateness)
    assert sum(counters.lateness.counts) == len(latenesses)
    for i, bound in enumerate(LATENESS_BOUNDS):
        assert sum(counters.lateness.counts[: i + 1]) == sum(lateness <= bound for lateness in latenesses)
    assert counters.lateness.sum == pytest.approx(sum(latenesses))


def test_probes_are_counted_by_outcome() -> None:
    counters = ProbeCounters()
    for kind, count in zip(OutcomeKind, range(1, 5), strict=True):
        for _ in range(count):
            counters.count_probe(Outcome(kind, 0.1))
    assert counters.outcomes == {
        OutcomeKind.OK: 1,
        OutcomeKind.DEGRADED: 2,
        OutcomeKind.FAILED: 3,
        OutcomeKind.INCONCLUSIVE: 4,
    }
    assert sum(counters.lateness.counts) == 0, "a probe on demand is never late"
