"""The Linux scheduling policy of the server's threads: ``SCHED_BATCH`` under load, the default otherwise.

A call passes through several gRPC threads. When a thread wakes another one on a busy machine, the kernel preempts the
first, about four times a call. ``SCHED_BATCH`` disables that preemption and saves a tenth of the processor time
of a call (ADR 0025). It also makes the threads wait for other programs, so it is used only while this process is busy
and its calls wait for each other anyway.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

_CHECK_SECONDS: Final = 0.25
# Shares of the time in which the event loop runs. The gap between them prevents flapping.
_BUSY_SHARE: Final = 0.5
_IDLE_SHARE: Final = 0.3


async def adapt_scheduling(
    *, period: float = _CHECK_SECONDS, thread_time: Callable[[], float] = time.thread_time
) -> None:
    """Switch the scheduling policy of all threads with the load of the calling thread, until cancelled.

    Returns at once if the kernel does not support or allow it, or if the process already runs under another policy.

    Args:
        period: Seconds between two checks of the load.
        thread_time: Returns the processor time of the calling thread in seconds.
    """
    if sys.platform != "linux":
        return
    with suppress(OSError):  # not permitted, or no /proc
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            await _adapt(period, thread_time)


async def _adapt(period: float, thread_time: Callable[[], float]) -> None:
    batch = False
    before = time.monotonic(), thread_time()
    while True:
        await asyncio.sleep(period)
        now = time.monotonic(), thread_time()
        share = (now[1] - before[1]) / (now[0] - before[0])
        before = now
        wanted = share >= (_IDLE_SHARE if batch else _BUSY_SHARE)
        if wanted != batch:
            batch = wanted
            _set_policy(os.SCHED_BATCH if batch else os.SCHED_OTHER)


def _set_policy(policy: int) -> None:
    """Set the policy of all existing threads; new threads inherit it from the thread that creates them."""
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
        except ProcessLookupError:  # the thread has just ended
            continue
