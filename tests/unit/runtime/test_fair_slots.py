import asyncio
from collections import Counter, defaultdict
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_server.runtime.fair_slots import FairSlots, TooManyWaiters


class Work:
    """Work of several keys that takes slots; the test ends it."""

    def __init__(self, size: int) -> None:
        self.slots = FairSlots(size, 1_000_000)
        self.held: Counter[str] = Counter()
        self.started: list[str] = []
        self.tickets: dict[str, list[int]] = defaultdict(list)

    def request(self, key: str, count: int = 1) -> None:
        for _ in range(count):
            if ticket := self.slots.request(key, partial(self._start, key)):
                self.tickets[key].append(ticket)

    def end(self, key: str) -> None:
        self.held[key] -= 1
        self.slots.release(key)

    def _start(self, key: str) -> None:
        self.held[key] += 1
        self.started.append(key)
        if self.tickets[key]:
            del self.tickets[key][0]


@pytest.mark.parametrize(
    ("size", "keys", "each"), [(1, 1, 1), (2, 1, 1), (3, 1, 2), (64, 1, 28), (64, 2, 18), (64, 3, 14), (500, 20, 21)]
)
def test_keys_that_want_more_hold_equal_parts(size: int, keys: int, each: int) -> None:
    work = Work(size)
    names = [f"key{number}" for number in range(keys)]
    for name in names:
        work.request(name, 20 * size)
    for name in names * 10 * size:
        if work.held[name]:
            work.end(name)
    assert all(abs(held - each) <= 1 for held in work.held.values())


def test_keys_without_a_slot_find_one_although_others_keep_theirs() -> None:
    work = Work(64)
    for number in range(100):
        work.request(f"greedy{number}", 1_000)
    assert [work.held[f"greedy{number}"] for number in range(12)] == [28, 14, 7, 4, 2, 1, 1, 1, 1, 1, 1, 1]


def test_key_with_many_waiters_delays_another_by_at_most_one_turn() -> None:
    work = Work(1)
    work.request("greedy", 100)
    work.request("modest", 3)
    for _ in range(6):
        work.end(work.started[-1])
    assert work.started == ["greedy", "greedy", "modest", "greedy", "modest", "greedy", "modest"]


def test_waiters_of_a_key_are_served_in_order() -> None:
    slots, served = FairSlots(1), list[int]()
    for number in range(5):
        slots.request("a", partial(served.append, number))
    for _ in range(4):
        slots.release("a")
    assert served == [0, 1, 2, 3, 4]


async def test_slot_is_held_during_the_context_and_passed_on_after_an_error() -> None:
    slots = FairSlots(1)
    waiting = []

    async def fail() -> None:
        async with slots.slot("a"):
            waiting.append(asyncio.create_task(slots.acquire("b")))
            await asyncio.sleep(0)
            assert slots.waiting("b") == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await asyncio.wait_for(waiting[0], 5)
    assert slots.waiting("b") == 0


async def test_cancelled_waiter_leaves_at_once_and_takes_no_slot() -> None:
    slots = FairSlots(1)
    await slots.acquire("a")
    gone, stays = (asyncio.create_task(slots.acquire(key)) for key in ("gone", "stays"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    assert slots.waiting("gone") == 0
    slots.release("a")
    await asyncio.wait_for(stays, 5)


@pytest.mark.parametrize("cancelled_first", [True, False])
async def test_waiter_that_is_cancelled_as_it_gets_a_slot_returns_it(*, cancelled_first: bool) -> None:
    slots = FairSlots(1)
    await slots.acquire("a")
    waiting = asyncio.create_task(slots.acquire("b"))
    await asyncio.sleep(0)
    if cancelled_first:
        waiting.cancel()
    slots.release("a")
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    await asyncio.wait_for(slots.acquire("c"), 5)


async def test_waiting_places_are_bounded_and_shared_as_slots_are() -> None:
    slots = FairSlots(1, max_waiting=8)
    await slots.acquire("a")
    for key, places in (("a", 4), ("b", 2), ("c", 1)):
        for _ in range(places):
            slots.request(key, lambda: None)
        with pytest.raises(TooManyWaiters):
            await slots.acquire(key)
        assert slots.waiting(key) == places
    slots.request("d", lambda: None)


def test_withdrawn_request_does_not_start() -> None:
    work = Work(1)
    work.request("a", 2)
    [ticket] = work.tickets["a"]
    assert work.slots.withdraw("a", ticket)
    assert not work.slots.withdraw("a", ticket)
    assert not work.slots.withdraw("a", 0), "has started"
    work.end("a")
    assert work.started == ["a"]


@given(st.integers(1, 7), st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("+-x")), max_size=60))
def test_no_slot_is_lost_and_no_waiter_is_forgotten(size: int, steps: list[tuple[str, str]]) -> None:
    work = Work(size)
    for key, step in steps:
        tickets = work.tickets[key]
        if step == "+":
            work.request(key)
        elif step == "-" and work.held[key]:
            work.end(key)
        elif step == "x" and tickets:
            assert work.slots.withdraw(key, tickets.pop())
        free = size - work.held.total()
        assert free >= 0
        assert all(work.slots.waiting(each) == len(work.tickets[each]) for each in "abcd")
        assert all(work.held[each] >= free for each in "abcd" if work.tickets[each]), "all that may start have started"
