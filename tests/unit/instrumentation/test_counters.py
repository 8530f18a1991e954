"""Plain numbers: classes, sums, and how calls ended."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from registry_server.instrumentation.counters import CALL_BOUNDS, CallCounters, Histogram


@given(st.lists(st.floats(0, 20)))
def test_a_class_has_what_is_at_most_its_bound_and_above_the_one_before(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    edges = [-1.0, *CALL_BOUNDS, float("inf")]
    assert histogram.counts == [sum(below < value <= bound for value in values) for below, bound in pairwise(edges)]
    assert histogram.sum == sum(values)


def test_bounds_ascend() -> None:
    assert sorted(set(CALL_BOUNDS)) == list(CALL_BOUNDS)


def test_calls_are_counted_by_how_they_ended() -> None:
    calls = CallCounters()
    for how, seconds in (("OK", 0.001), ("OK", 0.3), ("NOT_FOUND", 0.002)):
        calls.count(how, seconds)
    assert calls.ended == {"OK": 2, "NOT_FOUND": 1}
    assert sum(calls.seconds.counts) == 3
