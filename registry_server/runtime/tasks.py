"""Helpers for cancelling tasks and for waiting until the event loop is idle."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

_CANCEL_RETRY_SECONDS: Final = 0.1
# A pass of the event loop in which nothing runs takes 10 to 30 µs (measured).
_IDLE_PASS_SECONDS: Final = 0.00005
_IDLE_PASSES: Final = 2


async def cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel tasks repeatedly until they have ended.

    One cancellation is not enough on Python 3.11: ``wait_for``, which redis-py uses to send, loses a cancellation that
    arrives as it completes (https://github.com/python/cpython/issues/86296).
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=_CANCEL_RETRY_SECONDS)


def raise_if_cancelled() -> None:
    """Raise ``CancelledError`` if the current task was cancelled, even if the cancellation was lost.

    A ``TaskGroup`` cancels each of its tasks only once, and Python 3.11 may lose that cancellation (see ``cancel``).
    Loops in such tasks therefore call this after every call to Redis.

    Raises:
        CancelledError: The task was cancelled.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def wait_until_idle(max_seconds: float) -> None:
    """Wait until the event loop has no other work, for at most ``max_seconds``."""
    began = before = time.perf_counter()
    idle = 0
    while idle < _IDLE_PASSES and before - began < max_seconds:
        await asyncio.sleep(0)
        now = time.perf_counter()
        idle = idle + 1 if now - before < _IDLE_PASS_SECONDS else 0
        before = now


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group, searching nested groups too."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
