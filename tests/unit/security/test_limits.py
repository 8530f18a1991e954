"""``Shares``, ``Gauge`` and ``CallSlot``."""

from contextlib import ExitStack

import pytest

from registry_server.config import LimitSettings
from registry_server.errors import LimitExceeded, Overloaded
from registry_server.security.limits import SMALL_REQUEST_BYTES, CallSlot, Gauge, InFlight, Shares


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


def test_a_caller_may_use_most_of_a_total_alone() -> None:
    shares = Shares(100)
    assert all(shares.take("one", 1) for _ in range(80))
    assert shares.scarce
    assert not shares.take("one", 1)
    assert shares.take("another", 1)


def test_one_address_may_have_20_000_streams_by_default() -> None:
    limits = LimitSettings()
    gauge = Gauge("keep-alive-streams", limits.watches)
    with ExitStack() as held:
        for _ in range(20_000):
            held.enter_context(gauge.count("address"))
        assert gauge.total == 20_000


def test_reserved_part_is_for_callers_that_hold_less_than_an_equal_share() -> None:
    shares = Shares(100)
    assert all(shares.take("large", 1) for _ in range(80))
    assert shares.take("small", 1)
    assert not shares.take("large", 1)
    assert all(shares.take("small", 1) for _ in range(19))
    assert not shares.take("new", 1), "the total is a limit for everyone"
    shares.give_back("large", 60)
    assert shares.take("large", 1)
    assert (shares.held, shares.held_by("large"), shares.held_by("small")) == (41, 21, 20)


def test_many_callers_leave_a_place_for_each_other() -> None:
    shares = Shares(10)
    assert all(shares.take(caller, 1) for caller in range(10))
    assert not shares.take(0, 1)
    for caller in range(10):
        shares.give_back(caller, 1)
    assert (shares.held, shares._by_caller) == (0, {})


def test_gauge_without_a_limit_for_callers_shares_only_a_scarce_total() -> None:
    gauge = Gauge("things", 100, setting="limits.things")
    with ExitStack() as held:
        for _ in range(80):
            held.enter_context(gauge.count("network"))
        held.enter_context(gauge.count("another"))
        message = r"^limit of 100 things in this process reached \(limits\.things\)$"
        with pytest.raises(LimitExceeded, match=message), gauge.count("network"):
            pass
        held.enter_context(gauge.count("another"))


def test_large_calls_of_one_caller_leave_bytes_for_another() -> None:
    large = 10 * SMALL_REQUEST_BYTES
    in_flight = InFlight(max_calls=100, max_bytes=10 * large)
    slots = [CallSlot(in_flight, "one", large) for _ in range(8)]
    slots.append(CallSlot(in_flight, "two", large))
    with pytest.raises(Overloaded, match=r"\(limits\.call_bytes\)"):
        CallSlot(in_flight, "one", large)
    assert in_flight.calls.held == 9
    slots.append(CallSlot(in_flight, "two", large))
    for slot in slots:
        slot.release()
    assert (in_flight.calls.held, in_flight.bytes.held) == (0, 0)


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
