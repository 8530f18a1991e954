import asyncio
from collections.abc import Iterator
from itertools import pairwise

import pytest

from registry_server.catalog import slices
from registry_server.catalog.slices import Slices
from registry_server.errors import Overloaded


def steps(count: int, done: list[int], value: int = 0) -> Iterator[None]:
    for _ in range(count):
        done.append(value)
        yield


async def test_short_computation_runs_at_once() -> None:
    done = list[int]()
    running = Slices(10.0).run(steps(3, done))
    with pytest.raises(StopIteration):
        running.send(None)
    assert done == [0, 0, 0]


async def test_each_turn_runs_at_most_one_slice_of_all_computations() -> None:
    sliced, done = Slices(0), list[int]()
    tasks = [asyncio.create_task(sliced.run(steps(5, done, i))) for i in range(4)]
    await asyncio.sleep(0)  # the first slice of each
    counts = [len(done)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        counts.append(len(done))

    assert len(done) == 4 * 5
    assert max(after - before for before, after in pairwise(counts)) == 1


async def test_other_tasks_get_many_turns_between_two_slices() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    await Slices(0).run(steps(5, []))
    counting.cancel()
    assert turns > 4 * 16


async def test_callers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    sliced, done = Slices(0), list[int]()
    many = [asyncio.create_task(sliced.run(steps(50, done, 1))) for _ in range(20)]
    await asyncio.sleep(0)
    monkeypatch.setattr(slices, "current_caller_key", lambda: ("api-key", "another"))

    await sliced.run(steps(10, done, 2))

    assert done.count(1) < 60
    for task in many:
        task.cancel()
    await asyncio.gather(*many, return_exceptions=True)


async def test_too_many_waiting_computations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_MAX_WAITING", 8)
    sliced = Slices(0)
    tasks = [asyncio.create_task(sliced.run(steps(50, []))) for _ in range(20)]
    with pytest.raises(Overloaded, match="waiting for their scan"):
        await asyncio.gather(*tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
