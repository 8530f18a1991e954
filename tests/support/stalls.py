"""Stall detectors: the processor time that an event loop spends without polling for I/O.

While the loop does not poll, no caller is served. Processor time is measured instead of elapsed time, because other
processes of a busy machine must not fail a test.
"""

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.request import ProxyHandler, build_opener

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


class ProcessTurns:
    """Measures the turns of a server in another process from outside, within a ``with`` block.

    A thread sends one request after the other. The processor time that the main thread of the server uses until it
    answers is at least the rest of the current turn.
    """

    def __init__(self, pid: int, http_address: str) -> None:
        self._schedstat = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._url = f"http://{http_address}/health/live"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="turns", daemon=True)
        self._longest = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def take_longest(self) -> float:
        """Return the processor time of the longest turn since the last call, in seconds."""
        longest, self._longest = self._longest, 0.0
        return longest

    def _run(self) -> None:
        opener = build_opener(ProxyHandler({}))
        while not self._stop.wait(0.01):
            before = self._processor_seconds()
            with opener.open(self._url, timeout=60) as response:
                response.read()
            self._longest = max(self._longest, self._processor_seconds() - before)

    def _processor_seconds(self) -> float:
        return int(self._schedstat.read_text(encoding="ascii").split()[0]) / 1e9
