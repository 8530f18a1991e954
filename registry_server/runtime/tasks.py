"""Helpers for event loops and tasks."""

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

_CANCEL_RETRY_SECONDS: Final = 0.1
# A pass of the event loop in which nothing runs takes 10 to 30 µs (measured).
_IDLE_PASS_SECONDS: Final = 0.00005
_IDLE_PASSES: Final = 2

_T = TypeVar("_T")


def run_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a new event loop, uvloop's on CPython, and return its result."""
    if sys.implementation.name == "cpython":
        import uvloop  # noqa: PLC0415 - installed on CPython only

        return uvloop.run(main)
    return asyncio.run(main)


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


@contextmanager
def first_error(kind: type[Exception]) -> Iterator[None]:
    """Raise the first error of a kind itself instead of the group of a ``TaskGroup`` that contains it."""
    error: BaseException | None = None
    try:
        yield
    except* kind as group:
        error = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if error is not None:
        raise error
