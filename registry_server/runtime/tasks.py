"""Ending of tasks, and waiting for others."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

_AGAIN = 0.1
"""Seconds."""
_IDLE_PASS: Final = 0.00005
"""Seconds that one pass of an event loop takes in which nothing was done: 10 to 30 us here."""
_IDLE_PASSES: Final = 2


async def cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancels tasks until they have ended.

    Once is not enough on Python 3.11: its ``wait_for``, by which redis-py sends, loses a cancellation that comes as it
    is done (https://github.com/python/cpython/issues/86296).
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_AGAIN)


def end_if_cancelled() -> None:
    """Ends the task that calls it if that was cancelled and lost it, as above.

    For loops in tasks of a ``TaskGroup``, which cancels each of them only once: to be called after whatever asks Redis.

    Raises:
        CancelledError: It was cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def until_quiet(most: float) -> None:
    """Waits while the event loop has other work at hand.

    Args:
        most: Seconds after which it has been waited long enough.
    """
    began = before = time.perf_counter()
    idle = 0
    while idle < _IDLE_PASSES and before - began < most:
        await asyncio.sleep(0)
        now = time.perf_counter()
        idle = idle + 1 if now - before < _IDLE_PASS else 0
        before = now


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group, also of nested groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
