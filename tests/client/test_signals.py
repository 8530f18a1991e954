"""SIGTERM handling of blocks. The handler is called directly, because a signal could end the test process."""

import asyncio
import gc
import signal
import threading

import pytest

from registry_client import signals
from registry_client.signals import SigtermBlocks


async def test_block_absorbs_the_cancellation_of_sigterm() -> None:
    blocks = SigtermBlocks()
    blocks.enter_block("block")
    blocks._on_sigterm()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(30)
    assert blocks.was_terminated("block")
    assert blocks.exit_block("block")
    await asyncio.sleep(0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_only_the_outermost_block_absorbs_the_cancellation() -> None:
    blocks = SigtermBlocks()
    blocks.enter_block("outer")
    blocks.enter_block("inner")
    blocks._on_sigterm()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(30)
    assert not blocks.exit_block("inner")
    assert blocks.exit_block("outer")


async def test_task_cancelled_by_others_too_stays_cancelled() -> None:
    blocks = SigtermBlocks()
    absorbed: list[bool] = []

    async def block() -> None:
        blocks.enter_block("block")
        try:
            await asyncio.sleep(30)
        finally:
            absorbed.append(blocks.exit_block("block"))

    task = asyncio.create_task(block())
    await asyncio.sleep(0)
    blocks._on_sigterm()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert absorbed == [False]


async def test_block_without_signal_absorbs_nothing() -> None:
    blocks = SigtermBlocks()
    blocks.enter_block("block")
    assert not blocks.was_terminated("block")
    assert not blocks.exit_block("block")
    assert not blocks.exit_block("unknown")


def test_no_handler_is_installed_in_another_thread() -> None:
    async def block() -> None:
        blocks = signals.sigterm_blocks()
        blocks.enter_block("block")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert not blocks.exit_block("block")

    thread = threading.Thread(target=asyncio.run, args=(block(),))
    thread.start()
    thread.join()


def test_blocks_of_a_closed_loop_are_released() -> None:
    async def use() -> None:
        assert signals.sigterm_blocks() is signals.sigterm_blocks()

    gc.collect()
    before = len(signals._BLOCKS_BY_LOOP)
    asyncio.run(use())
    gc.collect()
    assert len(signals._BLOCKS_BY_LOOP) <= before
