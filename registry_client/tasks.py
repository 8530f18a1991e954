"""Helpers for tasks and callbacks."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_CANCEL_RETRY_SECONDS = 0.1

log = logging.getLogger(__name__)


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended; an exception of the task stays in it.

    The cancellation is repeated, because Python 3.11 can lose one that coincides with the completion of an awaited
    future (https://github.com/python/cpython/issues/86296).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CANCEL_RETRY_SECONDS)
    if not task.cancelled():
        task.exception()  # marks the exception as retrieved, so that asyncio does not log it


class Listeners(Generic[_T]):
    """A set of callbacks for one kind of value. An exception in a callback is logged and does not affect the others."""

    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[_T], object]] = {}

    def subscribe(self, callback: Callable[[_T], object]) -> Callable[[], None]:
        """Add a callback; return a function that removes it."""
        key = object()
        self._callbacks[key] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(key, None)

        return unsubscribe

    def notify(self, value: _T) -> None:
        """Call all callbacks with a value."""
        for callback in list(self._callbacks.values()):
            try:
                callback(value)
            except Exception:
                log.exception("listener raised an exception")
