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
