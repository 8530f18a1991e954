"""A stall detector: the processor time that an event loop spends without polling for I/O.

While the loop does not poll, no caller is served. Processor time is measured instead of elapsed time, because other
processes of a busy machine must not fail a test.
"""

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

MAX_TURN_SECONDS: Final = 0.25
"""Limit for tests. It is five times the promise, because processor time doubles where two threads share a core; the
faults take seconds."""


class Turns:
    """Turns of an event loop: what it runs between two polls for I/O."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Processor time of the longest turn, in seconds."""
        self._began = time.thread_time()

    def end(self) -> None:
        """End a turn."""
        self.longest = max(self.longest, time.thread_time() - self._began)

    def begin(self) -> None:
        """Begin a turn."""
        self._began = time.thread_time()


@contextmanager
def measured_turns() -> Iterator[Turns]:
    """Measure the turns of the running event loop, which must be asyncio's, within the block.

    Prepare requests outside of the block: their serialisation is work of the same thread. The garbage collector is off
    within it, because a full collection of the test process takes as long as a stall.
    """
    loop: Any = asyncio.get_running_loop()
    selector = loop._selector
    select = selector.select
    turns = Turns()

    def measured_select(timeout: float | None = None) -> Any:
        turns.end()
        try:
            return select(timeout)
        finally:
            turns.begin()

    gc.disable()
    selector.select = measured_select
    turns.begin()
    try:
        yield turns
        turns.end()
    finally:
        selector.select = select
        gc.enable()
