"""Waiting for what a client would see."""

import asyncio
from collections.abc import Callable

TIMEOUT = 30.0


async def until(condition: Callable[[], object], within: float = TIMEOUT) -> None:
    """Waits until a condition holds."""
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"did not come true in {within} s") from None
