import pytest

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.catalog.budgets import ChangeBudgets
from registry_server.catalog.change import Change
from registry_server.errors import RateLimited
from registry_server.model.record import Record
from tests.support.manual_clock import ManualClock
from tests.support.samples import small_service

RATE = 100
BURST = 256 * RATE


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def budgets(clock: ManualClock) -> ChangeBudgets:
    return ChangeBudgets(RATE, clock)


def change(owner: str, name: str = "a") -> Change:
    return Change(
        revision=1,
        type=EventType.EVENT_TYPE_SERVICE_UPDATED,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
        at_ms=0,
        before=None,
        after=Record(small_service(name).SerializeToString()),
        owner=owner,
    )


def available(budgets: ChangeBudgets, owner: str, quota: int = 0) -> int:
    """Return the size of the largest change that an owner may make now."""
    low, high = 0, 1_000 * BURST
    while low < high:
        middle = (low + high + 1) // 2
        try:
            with budgets.reserve(owner, middle, quota):
                low = middle
        except RateLimited:
            high = middle - 1
    return low


def test_burst_is_refused_beyond_the_budget_with_the_time_to_wait(budgets: ChangeBudgets) -> None:
    with budgets.reserve("a", BURST):
        with (
            pytest.raises(RateLimited, match=r"100 bytes.*limits\.change_bytes_per_second") as refused,
            budgets.reserve("a", 3 * RATE),
        ):
            pass
        with budgets.reserve("b", BURST):
            pass
    assert refused.value.retry_after == pytest.approx(3)
    assert available(budgets, "a") == BURST
    assert not budgets._reserved


def test_applied_changes_are_charged_and_recovered(budgets: ChangeBudgets, clock: ManualClock) -> None:
    size = change("a").size
    for _ in range(5):
        budgets.charge_change(change("a"), "a")

    assert available(budgets, "a") == pytest.approx(BURST - 5 * size, abs=1)
    clock.now += 2 * size / RATE
    assert available(budgets, "a") == pytest.approx(BURST - 3 * size, abs=1)
    clock.now += 1_000
    assert available(budgets, "a") == BURST


def test_changes_that_cannot_be_refused_make_a_debt(budgets: ChangeBudgets) -> None:
    removal = change("")
    for _ in range(2 * BURST // removal.size):
        budgets.charge_change(removal, "a")

    with pytest.raises(RateLimited) as refused, budgets.reserve("a", 1):
        pass
    assert refused.value.retry_after == pytest.approx(BURST / RATE, rel=0.1)
    assert available(budgets, "b") == BURST


def test_budget_grows_with_the_services_of_an_owner(budgets: ChangeBudgets) -> None:
    assert available(budgets, "a", quota=30_000) == 3 * BURST
    budgets.count_services({f"s{i}": "a" for i in range(40_000)})
    assert available(budgets, "a") == 4 * BURST

    budgets.charge_change(change("", "s1"), "a")
    budgets.charge_change(change("b", "s2"), "a")
    assert budgets._services == {"a": 39_998, "b": 1}
    budgets.charge_change(change("", "s2"), "b")
    assert budgets._services == {"a": 39_998}
