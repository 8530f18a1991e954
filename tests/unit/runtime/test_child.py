import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from registry_server.runtime.child import Child, RestartBackoff, SilenceWatch, running_child
from tests.support.processes import assert_ends_with_parent, runs

TIMEOUT = 30.0

CHILD = """
import asyncio, json, signal, sys
from registry_server.runtime.child import serve_child

async def main(connection, setup):
    if setup == "exits":
        return 7
    connection.send_json(setup)
    async for frame in connection:
        connection.send(frame)
    return 0

if __name__ == "__main__":
    sys.exit(serve_child(main, ignored_signals=[signal.SIGINT]))
"""

PARENT = """
import asyncio
from registry_server.runtime.child import running_child

async def main():
    async with running_child("child", None) as child:
        await anext(child.connection)
        print(child.process.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "child.py").write_text(CHILD, encoding="utf-8")
    (tmp_path / "broken.py").write_text("raise SystemExit(3)\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


async def exit_code(child: Child) -> int:
    async with asyncio.timeout(TIMEOUT):
        return await child.process.wait()


async def test_child_receives_its_setup_and_is_killed_on_exit() -> None:
    async with asyncio.timeout(TIMEOUT), running_child("child", {"a": 1}) as child:
        assert await anext(child.connection) == b'{"a": 1}'
        child.connection.send(b"echo")
        assert await anext(child.connection) == b"echo"
        assert runs(child.process.pid)
    assert child.process.returncode == -signal.SIGKILL


async def test_result_of_the_child_is_its_exit_code() -> None:
    async with running_child("child", "exits") as child:
        assert await exit_code(child) == 7
        assert [frame async for frame in child.connection] == []
        child.send_signal(signal.SIGTERM)  # has no effect


@pytest.mark.parametrize("module", ["broken", "no_such_module"])
async def test_child_that_fails_to_start_ends_its_connection(module: str) -> None:
    setup = "x" * 10_000_000  # more than a socket buffer holds
    async with asyncio.timeout(TIMEOUT), running_child(module, setup) as child:
        assert [frame async for frame in child.connection] == []
        assert await exit_code(child) == (3 if module == "broken" else 1)


async def test_child_ends_when_its_connection_closes() -> None:
    async with running_child("child", None) as child:
        await anext(child.connection)
        child.connection.close()
        assert await exit_code(child) == 0


@pytest.mark.slow
async def test_child_does_not_outlive_a_killed_parent() -> None:
    await assert_ends_with_parent(PARENT)


async def test_ignored_signal_does_not_end_the_child() -> None:
    async with asyncio.timeout(TIMEOUT), running_child("child", None) as child:
        await anext(child.connection)
        child.send_signal(signal.SIGINT)
        child.connection.send(b"echo")
        assert await anext(child.connection) == b"echo"
        child.send_signal(signal.SIGTERM)
        assert await exit_code(child) == -signal.SIGTERM


@pytest.mark.slow
async def test_stopped_child_is_silent_and_one_that_runs_is_not() -> None:
    silence = SilenceWatch(interval_seconds=0.05)
    async with asyncio.timeout(TIMEOUT), running_child("child", None) as child:
        await anext(child.connection)
        silence.observe(child.connection)
        reading = asyncio.create_task(_read(child))
        checks = 0
        while (following := await silence.next_check()) > checks:  # until a frame resets the count
            checks = following
        child.send_signal(signal.SIGSTOP)
        while await silence.next_check() < 40:  # two seconds: twice the interval of frames
            pass
        child.send_signal(signal.SIGKILL)
        await reading


async def _read(child: Child) -> None:
    async for _ in child.connection:
        pass


async def test_silence_is_counted_in_checks() -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    silence = SilenceWatch(2.0, sleep=sleep)
    assert [await silence.next_check() for _ in range(3)] == [1, 2, 3]
    silence.reset()
    assert await silence.next_check() == 1
    assert waited == [2.0] * 4


def backoff_with(uptimes: list[float], uniform: Callable[[float, float], float]) -> list[float]:
    """Return the delays of a process with these uptimes."""
    now = 0.0
    subject = RestartBackoff(min_seconds=0.1, max_seconds=1.0, healthy_seconds=5.0, clock=lambda: now, uniform=uniform)
    delays = []
    for uptime in uptimes:
        subject.start()
        now += uptime
        delays.append(subject.next_delay())
    return delays


@pytest.mark.parametrize(
    ("uptimes", "delays"),
    [
        ([0.0] * 6, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]),
        ([0.0, 0.0, 5.1, 0.0], [0.1, 0.2, 0.1, 0.2]),
        ([5.1, 5.1, 5.1], [0.1, 0.1, 0.1]),
        ([0.0] * 10_000, [0.1, 0.2, 0.4, 0.8, *[1.0] * 9_996]),
    ],
)
def test_delays_double_until_a_healthy_uptime(uptimes: list[float], delays: list[float]) -> None:
    assert backoff_with(uptimes, lambda low, _: low) == delays


def test_delays_are_extended_by_jitter_up_to_the_maximum() -> None:
    assert backoff_with([0.0] * 5, lambda _, high: high) == [0.15, 0.3, 0.6, 1.0, 1.0]
