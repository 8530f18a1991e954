"""``Buckets``, ``Gauge`` and ``CallSlot``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_server.errors import LimitExceeded, Overloaded, RateLimited
from registry_server.security.limits import MAX_BUCKETS, SMALL_REQUEST_BYTES, Buckets, CallSlot, Gauge, InFlight
from tests.unit.security.manual_clock import ManualClock


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    pauses=st.lists(st.floats(0, 5), max_size=120),
)
def test_bucket_behaves_like_a_token_bucket(rate: float, burst: int, pauses: list[float]) -> None:
    clock, tokens = ManualClock(), float(burst)
    buckets = Buckets(clock)
    for pause in pauses:
        clock.now += pause
        tokens = min(burst, tokens + pause * rate)
        if abs(tokens - 1) < 1e-6:  # rounding decides
            return
        if tokens > 1:
            buckets.take_token("a", rate, burst)
            tokens -= 1
            continue
        with pytest.raises(RateLimited) as caught:
            buckets.take_token("a", rate, burst)
        assert caught.value.retry_after == pytest.approx((1 - tokens) / rate, rel=1e-3, abs=1e-6)


def test_each_caller_has_a_separate_bucket(clock: ManualClock) -> None:
    buckets = Buckets(clock)
    buckets.take_token("a", 1, 1)
    buckets.take_token("b", 1, 1)
    with pytest.raises(RateLimited):
        buckets.take_token("a", 1, 1)


def test_buckets_are_bounded_and_keep_the_callers_that_call(clock: ManualClock) -> None:
    buckets = Buckets(clock)
    buckets.take_token("busy", 1, 1)
    for i in range(3 * MAX_BUCKETS):
        buckets.take_token(i, 1, 2)
        if i % 1_000 == 0:
            with pytest.raises(RateLimited):
                buckets.take_token("busy", 1, 1)
    assert len(buckets) == MAX_BUCKETS
    with pytest.raises(RateLimited):
        buckets.take_token("busy", 1, 1)


def test_gauge_limits_each_caller_and_all_and_returns_to_zero() -> None:
    gauge = Gauge("things", 3)
    with gauge.count("a", 2), gauge.count("a", 2):
        with pytest.raises(LimitExceeded, match=r"^limit of 2 things per caller reached$"), gauge.count("a", 2):
            pass
        with (
            gauge.count("b", 2),
            pytest.raises(LimitExceeded, match=r"^limit of 3 things in this process reached$"),
            gauge.count("c", 2),
        ):
            pass
    assert gauge.total == 0
    assert not gauge._shares._by_caller


def test_call_slots_limit_calls_and_are_released() -> None:
    in_flight = InFlight(max_calls=1, max_bytes=1)
    slot = CallSlot(in_flight, "a", SMALL_REQUEST_BYTES)
    with pytest.raises(Overloaded, match="limit of 1 calls in flight reached"):
        CallSlot(in_flight, "a", 0)
    assert (in_flight.calls.held, in_flight.bytes.held, in_flight.rejected) == (1, 0, 1)
    slot.release()
    assert (in_flight.calls.held, in_flight.bytes.held) == (0, 0)


def test_call_slots_limit_bytes_but_admit_a_single_large_call() -> None:
    large = SMALL_REQUEST_BYTES + 1
    in_flight = InFlight(max_calls=10, max_bytes=large - 1)
    slot = CallSlot(in_flight, "a", large)
    with pytest.raises(Overloaded, match="bytes of requests and answers reached"):
        CallSlot(in_flight, "a", large)
    assert (in_flight.calls.held, in_flight.bytes.held, in_flight.rejected) == (1, large, 1)
    slot.release()
    assert (in_flight.calls.held, in_flight.bytes.held) == (0, 0)
