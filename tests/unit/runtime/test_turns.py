import asyncio
from collections.abc import Iterator
from itertools import count

import pytest

from registry_server.runtime.turns import Turns
from tests.support.stalls import measured_turns


def computation(name: str, steps: int, done: list[str]) -> Iterator[None]:
    for _ in range(steps):
        done.append(name)
        yield


def turns_of(steps: float) -> Turns:
    """Return turns whose slices have a number of steps."""
    ticks = count()
    return Turns(steps, monotonic=lambda: float(next(ticks)))


async def test_computation_runs_to_its_end() -> None:
    done: list[str] = []
    await turns_of(2).run(computation("a", 5, done))
    await turns_of(2).run(computation("b", 0, done))
    assert done == ["a"] * 5


async def test_other_tasks_run_after_each_slice() -> None:
    done: list[str] = []

    async def other() -> None:
        while "end" not in done:
            done.append("-")
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await turns_of(2).run(computation("a", 6, done))
    done.append("end")
    await task
    assert "".join(done).replace("--", "-").strip("-") == "aa-aa-aa-end"


async def test_computations_take_turns() -> None:
    done: list[str] = []
    turns = turns_of(2)
    await asyncio.gather(*(turns.run(computation(name, 4, done)) for name in "abc"))
    assert "".join(done) == "aabbccaabbcc"


async def test_failed_or_cancelled_computation_passes_its_turn_on() -> None:
    def failing() -> Iterator[None]:
        yield
        raise ValueError("bug")

    turns, done = turns_of(1), list[str]()
    endless = asyncio.create_task(turns.run(iter(int, 1)))
    failed = asyncio.create_task(turns.run(failing()))
    with pytest.raises(ValueError, match="bug"):
        await failed
    endless.cancel()
    await turns.run(computation("a", 3, done))
    assert done == ["a"] * 3
    assert endless.cancelled()


async def test_turns_are_measured_between_polls_of_the_event_loop() -> None:
    def work() -> None:
        sum(range(2_000_000))

    with measured_turns() as short:
        for _ in range(5):
            work()
            await asyncio.sleep(0)
    with measured_turns() as long:
        for _ in range(5):
            work()
        await asyncio.sleep(0)
    assert 0 < 2 * short.longest < long.longest
