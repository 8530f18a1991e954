"""Waiting for conditions."""

import asyncio
from collections.abc import Callable

TIMEOUT_SECONDS = 30.0


async def until(condition: Callable[[], object], timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Wait until a condition holds."""
    try:
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"condition not met within {timeout_seconds} s") from None
