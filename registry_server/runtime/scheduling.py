"""How the kernel schedules the threads of a server: for throughput while it is busy, else for latency.

A call goes through several threads of gRPC. One that is woken may take the processor from the one that woke it, and
where the processors are busy it does, some four times a call. ``SCHED_BATCH`` ends that: a tenth less processor time a
call (ADR 0025). But threads that run so wait for other programs too; so only a process that is busy, whose calls wait
for each other anyway, runs so.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_PERIOD: Final = 0.25
_BUSY: Final = 0.5
_NO_LONGER_BUSY: Final = 0.3
"""Shares of the time in which the event loop runs; between them all stays as it is."""


async def follow_load(*, period: float = _PERIOD, worked: Callable[[], float] = time.thread_time) -> None:
    """Looks for ever how busy the thread that calls it is, and has all threads of this process scheduled accordingly.

    Ends where the kernel has no such thing or does not allow it, and where somebody else has chosen how this process is
    scheduled.

    Args:
        period: Seconds between two looks.
        worked: Tells for how many seconds the thread has run.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError):  # not allowed, or no /proc
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            await _follow(period, worked)


async def _follow(period: float, worked: Callable[[], float]) -> None:
    batch = False
    before = time.monotonic(), worked()
    while True:
        await asyncio.sleep(period)
        now = time.monotonic(), worked()
        share = (now[1] - before[1]) / (now[0] - before[0])
        before = now
        wanted = share >= (_NO_LONGER_BUSY if batch else _BUSY)
        if wanted != batch:
            batch = wanted
            _schedule_all(os.SCHED_BATCH if batch else os.SCHED_OTHER)


def _schedule_all(policy: int) -> None:
    """Those that are made later take it from who makes them."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
        except ProcessLookupError:  # it has just ended
            continue
