"""``TokenBuckets``."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_server.runtime.token_buckets import TokenBuckets
from tests.support.manual_clock import ManualClock


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 5), max_size=120),
)
def test_bucket_behaves_like_a_token_bucket(rate: float, burst: int, pauses: list[float]) -> None:
    clock, tokens = ManualClock(), float(burst)
    buckets = TokenBuckets(clock)
    for pause in pauses:
        clock.now += pause
        tokens = min(burst, tokens + pause * rate)
        if abs(tokens - 1) < 1e-6:  # rounding decides
            return
        wait = buckets.take("a", rate, burst)
        if tokens > 1:
            assert not wait
            tokens -= 1
        else:
            assert wait == pytest.approx((1 - tokens) / rate, rel=1e-3, abs=1e-6)


def test_each_key_has_a_separate_bucket() -> None:
    buckets = TokenBuckets(ManualClock())
    assert not buckets.take("a", 1, 1)
    assert not buckets.take("b", 1, 1)
    assert buckets.take("a", 1, 1) == 1


def test_buckets_are_bounded_and_keep_the_keys_that_are_used() -> None:
    buckets = TokenBuckets(ManualClock(), max_keys=1_000)
    buckets.take("busy", 1, 1)
    for i in range(3_000):
        buckets.take(i, 1, 2)
        if i % 100 == 0:
            assert buckets.take("busy", 1, 1)
    assert len(buckets) == 1_000
    assert buckets.take("busy", 1, 1)


def test_unlimited_burst_makes_a_debt() -> None:
    clock = ManualClock()
    buckets = TokenBuckets(clock)
    assert not buckets.take("a", 10, math.inf, 50)
    assert buckets.seconds_until_full("a") == 5
    clock.now += 4.5
    assert buckets.take("a", 10, 10) == 0
    assert buckets.seconds_until_full("a") == pytest.approx(0.6)
    assert buckets.seconds_until_full("b") == 0
