import asyncio
from collections.abc import Sequence

from registry_server.runtime.pacing import FairQueue, Turn, Wakeups
from tests.support.manual_clock import ManualClock


async def test_deadline_is_set_by_the_first_call_of_a_turn() -> None:
    clock = ManualClock()
    turn = Turn(2.0, clock)
    first = turn.deadline()
    clock.now += 1.0

    assert turn.deadline() == first == 1002.0
    await asyncio.sleep(0)
    assert turn.deadline() == 1003.0


def test_queue_serves_keys_in_turns_and_items_in_order() -> None:
    queue = FairQueue[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.push(item[0], item)

    taken = []
    while queue:
        taken.append(queue.pop())

    assert taken == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def woken_by_turn(futures: Sequence["asyncio.Future[None]"]) -> list[int]:
    """Return how many futures are done after each turn, until all are."""
    counts = [sum(future.done() for future in futures)]
    while counts[-1] < len(futures):
        await asyncio.sleep(0)
        counts.append(sum(future.done() for future in futures))
    return counts


async def test_each_turn_wakes_a_limited_number_of_tasks() -> None:
    wakeups = Wakeups(per_turn=3)
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(8)]

    for future in futures:
        wakeups.wake(future)

    counts = await woken_by_turn(futures)
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) == 3


async def test_other_tasks_have_turns_between_full_ones() -> None:
    wakeups = Wakeups(per_turn=2, rest_turns=3)
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(5)]

    for future in futures:
        wakeups.wake(future)

    assert await woken_by_turn(futures) == [2, 2, 2, 2, 4, 4, 4, 4, 5]


async def test_key_with_many_waiters_delays_another_by_one_turn() -> None:
    wakeups = Wakeups(per_turn=2)
    loop = asyncio.get_running_loop()
    for _ in range(100):
        wakeups.wake(loop.create_future(), "many")
    single: asyncio.Future[None] = loop.create_future()
    wakeups.wake(single, "single")

    await asyncio.sleep(0)

    assert single.done()


async def test_cancelled_waiter_takes_no_place_in_a_turn() -> None:
    wakeups = Wakeups(per_turn=1)
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(3)]
    for future in futures:
        wakeups.wake(future)
    futures[1].cancel()

    await asyncio.sleep(0)

    assert futures[2].done()


async def test_idle_wakeups_schedule_nothing() -> None:
    wakeups = Wakeups()
    wakeups.wake(asyncio.get_running_loop().create_future())
    for _ in range(3):
        await asyncio.sleep(0)

    assert not wakeups._scheduled
