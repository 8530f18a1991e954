import asyncio
import time
from contextlib import suppress

import pytest

from registry_server.runtime.tasks import cancel, raise_if_cancelled, wait_until_idle

TIMEOUT = 10.0


async def loses_it(begun: asyncio.Event) -> None:
    """Asks, and loses the cancellation that comes meanwhile, as redis-py may on Python 3.11."""
    while True:
        begun.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        raise_if_cancelled()


async def test_a_task_of_a_group_that_lost_its_cancellation_ends_all_the_same() -> None:
    begun = asyncio.Event()

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(loses_it(begun))

    task = asyncio.create_task(run())
    await begun.wait()
    async with asyncio.timeout(TIMEOUT):
        await cancel([task])
    assert task.cancelled()


async def test_who_was_not_cancelled_goes_on_also_after_a_timeout_of_its_own() -> None:
    raise_if_cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(3600)
    raise_if_cancelled()


async def test_tasks_that_lose_a_cancellation_are_cancelled_again() -> None:
    lost = 0

    async def loses_twice() -> None:
        nonlocal lost
        while lost < 2:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                lost += 1

    task = asyncio.create_task(loses_twice())
    await asyncio.sleep(0)
    async with asyncio.timeout(TIMEOUT):
        await cancel([task])
    assert lost == 2


async def test_an_idle_loop_is_quiet_at_once() -> None:
    async with asyncio.timeout(TIMEOUT):
        await wait_until_idle(max_seconds=3600)


async def test_what_is_at_hand_is_done_first_but_not_waited_for_without_end() -> None:
    done = 0

    async def works() -> None:
        nonlocal done
        while True:
            time.sleep(0.001)  # noqa: ASYNC251 - work
            done += 1
            await asyncio.sleep(0)

    working = asyncio.create_task(works())
    async with asyncio.timeout(TIMEOUT):
        await wait_until_idle(max_seconds=0.05)
    assert done > 1
    await cancel([working])
