import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_server.runtime.guarded_process import GuardedProcess
from tests.support.processes import assert_ends_with_parent
from tests.support.waiting import until

TIMEOUT = 30.0

PARENT = """
import asyncio, os
from registry_server.runtime.guarded_process import GuardedProcess

async def main():
    process = await GuardedProcess.start("sleep", "3600", output=os.open(os.devnull, os.O_WRONLY))
    print(process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def output(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


async def test_output_and_exit_status_are_those_of_the_program(output: int, tmp_path: Path) -> None:
    process = await GuardedProcess.start("sh", "-c", "echo out; echo err >&2; exit 3", output=output)
    async with asyncio.timeout(TIMEOUT):
        assert await process.wait() == process.returncode == 3
    assert (tmp_path / "log").read_text() == "out\nerr\n"


async def test_stop_terminates_the_program_and_is_idempotent(output: int) -> None:
    process = await GuardedProcess.start("sleep", "3600", output=output)
    assert os.getsid(process.pid) == process.pid, "signals of the terminal do not reach it"
    async with asyncio.timeout(TIMEOUT):
        await process.stop(grace=TIMEOUT)
        await process.stop(grace=TIMEOUT)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.slow
async def test_program_that_ignores_sigterm_is_killed(output: int, tmp_path: Path) -> None:
    process = await GuardedProcess.start("sh", "-c", "trap '' TERM; echo ready; sleep 3600", output=output)
    await until((tmp_path / "log").read_text)
    async with asyncio.timeout(TIMEOUT):
        await process.stop(grace=0.1)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
async def test_program_ends_when_this_process_is_killed() -> None:
    await assert_ends_with_parent(PARENT)
