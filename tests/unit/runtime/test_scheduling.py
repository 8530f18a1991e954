"""How the kernel schedules the threads of a server, as the kernel tells it; each time in a process of its own."""

import json
import subprocess
import sys
from typing import Final

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has it")

# The load is what the program says that it is: how busy a test really is depends on who else runs.
PROGRAM: Final = """
import asyncio, json, os, threading, time
from registry_server.runtime.scheduling import adapt_scheduling

async def main():
    share, over = 0.0, threading.Event()
    began = time.monotonic()
    worked = before = 0.0
    def load():
        nonlocal worked, before
        now = time.monotonic() - began
        worked, before = worked + share * (now - before), now
        return worked
    other = threading.Thread(target=over.wait)
    other.start()
    seen = []
    {prepare}
    following = asyncio.create_task(adapt_scheduling(period=0.02, thread_time=load))
    for share in {shares}:
        await asyncio.sleep(0.5)
        policies = {{os.sched_getscheduler(thread) for thread in (0, other.native_id)}}
        seen.append(sorted(policies))
    print(json.dumps([seen, following.done()]))
    following.cancel()
    over.set()

asyncio.run(main())
"""
OTHER, BATCH, IDLE = 0, 3, 5  # linux/sched.h


def followed(shares: list[float], prepare: str = "") -> tuple[list[list[int]], bool]:
    """Policies of two threads after a while at each share of load, and whether the load is followed no longer."""
    program = PROGRAM.format(shares=shares, prepare=prepare)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    seen, ended = json.loads(done.stdout)
    return seen, ended


@pytest.mark.slow
def test_all_threads_of_a_busy_process_are_scheduled_for_throughput_until_it_is_not_busy() -> None:
    seen, ended = followed([0.1, 0.9, 0.4, 0.1, 0.4])
    assert seen == [[OTHER], [BATCH], [BATCH], [OTHER], [OTHER]]
    assert not ended


@pytest.mark.slow
def test_what_somebody_else_has_chosen_stays() -> None:
    seen, ended = followed([0.9], prepare="os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))")
    assert seen == [[OTHER, IDLE]]  # the other thread is older
    assert ended


@pytest.mark.slow
def test_where_it_is_not_allowed_it_is_given_up() -> None:
    refuse = "os.sched_setscheduler = lambda *_: (_ for _ in ()).throw(PermissionError())"
    assert followed([0.9], prepare=refuse) == ([[OTHER]], True)
