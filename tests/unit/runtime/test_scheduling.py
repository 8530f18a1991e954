"""The scheduling policy of the server's threads, as the kernel reports it. Each test runs in a separate process."""

import json
import subprocess
import sys
from typing import Final

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SCHED_BATCH exists only on Linux")

# The program simulates the load, because the real load depends on the other processes of the machine.
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
    adapting = asyncio.create_task(adapt_scheduling(period=0.02, thread_time=load))
    for share in {shares}:
        await asyncio.sleep(0.5)
        policies = {{os.sched_getscheduler(thread) for thread in (0, other.native_id)}}
        seen.append(sorted(policies))
    print(json.dumps([seen, adapting.done()]))
    adapting.cancel()
    over.set()

asyncio.run(main())
"""
OTHER, BATCH, IDLE = 0, 3, 5  # linux/sched.h


def run_program(shares: list[float], prepare: str = "") -> tuple[list[list[int]], bool]:
    """Return the policies of two threads after each share of load, and whether the adaptation has ended."""
    program = PROGRAM.format(shares=shares, prepare=prepare)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    seen, ended = json.loads(done.stdout)
    return seen, ended


@pytest.mark.slow
def test_all_threads_of_a_busy_process_run_as_batch_until_it_is_idle() -> None:
    seen, ended = run_program([0.1, 0.9, 0.4, 0.1, 0.4])
    assert seen == [[OTHER], [BATCH], [BATCH], [OTHER], [OTHER]]
    assert not ended


@pytest.mark.slow
def test_policy_that_was_set_from_outside_is_kept() -> None:
    seen, ended = run_program([0.9], prepare="os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))")
    assert seen == [[OTHER, IDLE]]  # the other thread was started earlier
    assert ended


@pytest.mark.slow
def test_missing_permission_ends_the_adaptation() -> None:
    denied = "os.sched_setscheduler = lambda *_: (_ for _ in ()).throw(PermissionError())"
    assert run_program([0.9], prepare=denied) == ([[OTHER]], True)
