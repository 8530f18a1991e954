"""Ending of tasks."""

import asyncio
from collections.abc import Sequence
from typing import Any

_AGAIN = 0.1
"""Seconds."""


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
