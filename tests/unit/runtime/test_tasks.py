import asyncio
import traceback
from contextlib import suppress

import pytest

from registry_server.runtime.tasks import (
    cancel,
    first_error,
    keep_running,
    raise_if_cancelled,
    run_loop,
)

TIMEOUT = 10.0


async def lose_cancellation(started: asyncio.Event) -> None:
    """Wait, and lose a cancellation that arrives meanwhile, as redis-py may on Python 3.11."""
    while True:
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        raise_if_cancelled()


async def test_task_of_a_group_ends_even_if_its_cancellation_was_lost() -> None:
    started = asyncio.Event()

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(lose_cancellation(started))

    task = asyncio.create_task(run())
    await started.wait()
    async with asyncio.timeout(TIMEOUT):
        await cancel([task])
    assert task.cancelled()


async def test_task_that_was_not_cancelled_continues_after_a_timeout() -> None:
    raise_if_cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(3600)
    raise_if_cancelled()


async def test_task_that_loses_a_cancellation_is_cancelled_again() -> None:
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


async def fail(*errors: Exception) -> None:
    """Raise errors in nested groups of tasks."""

    async def fail_one(error: Exception) -> None:
        async with asyncio.TaskGroup():
            raise error

    async with asyncio.TaskGroup() as group:
        for error in errors:
            group.create_task(fail_one(error))


async def test_first_error_of_a_kind_is_raised_without_its_group() -> None:
    with pytest.raises(ValueError, match="nested") as raised, first_error(ValueError):
        await fail(KeyError("other"), ValueError("nested"))
    assert raised.value.__notes__ == ["also failed: KeyError('other')"]
    assert "ExceptionGroup" not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(ValueError, match="plain"), first_error(ValueError):
        raise ValueError("plain")


async def test_error_of_another_kind_is_raised_without_its_group() -> None:
    cause = OSError("its cause")
    error = KeyError("first")
    error.__cause__ = cause
    with pytest.raises(KeyError) as raised, first_error(ValueError):
        await fail(error)
    assert raised.value.__cause__ is cause


def test_program_ends_with_an_error_without_its_group() -> None:
    with pytest.raises(KeyError, match="first"):
        run_loop(fail(KeyError("first")))


async def test_cancellation_passes_through_first_error() -> None:
    async def work() -> None:
        with first_error(ValueError):
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(60))

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    await asyncio.wait([working])
    assert working.cancelled()


async def test_restart_delay_doubles_up_to_the_longest_with_jitter() -> None:
    delays: list[float] = []
    failures: list[Exception] = []

    async def work() -> None:
        if len(failures) < 5:
            raise ValueError(len(failures))

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    await keep_running(
        work, failures.append, retry_seconds=(0.5, 2.0), sleep=sleep, jitter=lambda low, high: (low + high) / 2
    )
    assert delays == [0.375, 0.75, 1.5, 1.5, 1.5]
    assert [str(error) for error in failures] == list("01234")
