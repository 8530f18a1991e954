"""Small tools around tasks and callbacks."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_AGAIN = 0.1
"""Seconds."""

log = logging.getLogger(__name__)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancels a task until it has ended; what it raised is left in it.

    Once is not enough on Python 3.11, which can lose a cancellation that comes as something is done
    (https://github.com/python/cpython/issues/86296).
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_AGAIN)
    if not task.cancelled():
        task.exception()  # taken: nobody is to be told that nobody asked for it


class Listeners(Generic[_T]):
    """Functions that are told of something. What they raise is logged and does no harm."""

    def __init__(self) -> None:
        self._functions: dict[object, Callable[[_T], object]] = {}

    def add(self, function: Callable[[_T], object]) -> Callable[[], None]:
        """Adds a function; gives another one that takes it out again."""
        key = object()
        self._functions[key] = function

        def remove() -> None:
            self._functions.pop(key, None)

        return remove

    def tell(self, value: _T) -> None:
        """Calls all functions."""
        for function in list(self._functions.values()):
            try:
                function(value)
            except Exception:
                log.exception("a listener failed")
