"""Helpers for event loops and tasks."""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

_CANCEL_RETRY_SECONDS: Final = 0.1

_T = TypeVar("_T")


def run_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine in a new event loop, uvloop's on CPython, and return its result; see also ``first_error``."""
    with first_error(Exception):
        if sys.implementation.name == "cpython":
            import uvloop  # noqa: PLC0415 - installed on CPython only

            return uvloop.run(main)
        return asyncio.run(main)


async def keep_running(
    work: Callable[[], Awaitable[None]],
    on_failure: Callable[[Exception], None],
    *,
    retry_seconds: tuple[float, float] = (0.1, 5.0),
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    jitter: Callable[[float, float], float] = random.uniform,
) -> None:
    """Run a background task until it returns or is cancelled; start it again whenever it raises.

    Args:
        work: The task. It handles the errors that it expects.
        on_failure: Reports any other error, which is a bug; what it raises ends the task.
        retry_seconds: First and longest delay before a restart; the delay doubles unless the task ran for longer.
        sleep: Waits for the delay.
        jitter: Returns a random number between its two arguments, by which each delay is multiplied.
    """
    delay, longest = retry_seconds
    while True:
        began = time.monotonic()
        try:
            with first_error(Exception):
                await work()
        except Exception as error:  # noqa: BLE001 - one task that fails must not end the others
            on_failure(error)
        else:
            return
        raise_if_cancelled()
        if time.monotonic() - began > longest:
            delay = retry_seconds[0]
        await sleep(delay * jitter(0.5, 1.0))
        delay = min(2 * delay, longest)


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


@contextmanager
def first_error(preferred: type[Exception]) -> Iterator[None]:
    """Raise one error of a ``TaskGroup`` itself instead of its group: the first of a kind, or else the first.

    A group shows people a tree of tracebacks. The other errors of the group are named in a note of the raised one.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        error = next((each for each in errors if isinstance(each, preferred)), errors[0])
        for other in errors:
            if other is not error:
                error.add_note(f"also failed: {other!r}")
        raise error from error.__cause__


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
