"""Histogram buckets and sums, and the counts of calls by result."""

from functools import reduce
from itertools import pairwise
from operator import add

from hypothesis import given
from hypothesis import strategies as st

from registry_server.instrumentation.counters import CALL_BOUNDS, CallCounters, Histogram


@given(st.lists(st.floats(0, 20)))
def test_bucket_counts_values_up_to_its_bound_and_above_the_previous_one(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    edges = [-1.0, *CALL_BOUNDS, float("inf")]
    assert histogram.counts == [sum(lower < value <= bound for value in values) for lower, bound in pairwise(edges)]
    assert histogram.sum == reduce(add, values, 0.0)  # sum() compensates for rounding from Python 3.12 on


def test_bounds_are_ascending() -> None:
    assert sorted(set(CALL_BOUNDS)) == list(CALL_BOUNDS)


def test_calls_are_counted_by_result() -> None:
    calls = CallCounters()
    for result, seconds in (("OK", 0.001), ("OK", 0.3), ("NOT_FOUND", 0.002)):
        calls.count(result, seconds)
    assert calls.ended == {"OK": 2, "NOT_FOUND": 1}
    assert sum(calls.seconds.counts) == 3
