"""What SIGTERM does to blocks, without a signal: the process of these tests is not to end."""

import asyncio
import gc
import signal
import threading

import pytest

from registry_client import signals
from registry_client.signals import Terminations


async def test_a_block_that_ends_as_the_signal_comes_takes_the_cancellation_back() -> None:
    blocks = Terminations()
    blocks.enter("block")
    blocks._on_sigterm()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(30)
    assert blocks.was_signalled("block")
    assert blocks.leave("block")
    await asyncio.sleep(0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_only_the_outermost_block_of_a_task_takes_it_back() -> None:
    blocks = Terminations()
    blocks.enter("outer")
    blocks.enter("inner")
    blocks._on_sigterm()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(30)
    assert not blocks.leave("inner")
    assert blocks.leave("outer")


async def test_who_is_cancelled_by_others_too_stays_cancelled() -> None:
    blocks = Terminations()
    left: list[bool] = []

    async def block() -> None:
        blocks.enter("block")
        try:
            await asyncio.sleep(30)
        finally:
            left.append(blocks.leave("block"))

    task = asyncio.create_task(block())
    await asyncio.sleep(0)
    blocks._on_sigterm()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left == [False]


async def test_without_a_signal_nothing_is_taken_back() -> None:
    blocks = Terminations()
    blocks.enter("block")
    assert not blocks.was_signalled("block")
    assert not blocks.leave("block")
    assert not blocks.leave("unknown")


def test_in_another_thread_the_signal_is_left_alone() -> None:
    async def block() -> None:
        blocks = signals.terminations()
        blocks.enter("block")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not blocks.leave("block")

    thread = threading.Thread(target=asyncio.run, args=(block(),))
    thread.start()
    thread.join()


def test_a_loop_that_is_gone_is_forgotten() -> None:
    async def use() -> None:
        assert signals.terminations() is signals.terminations()

    gc.collect()
    before = len(signals._OF_LOOPS)
    asyncio.run(use())
    gc.collect()
    assert len(signals._OF_LOOPS) <= before
