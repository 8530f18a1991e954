"""SIGTERM handling: SIGTERM ends the registration blocks of the program.

The handler cancels the tasks of the blocks, and the outermost block of each task absorbs the cancellation. The effect
is that ``async with client.registration(...)`` is left as if its body had ended, and the program continues after it.
"""

import asyncio
import signal
import threading
from contextlib import suppress
from weakref import WeakKeyDictionary


class SigtermBlocks:
    """The blocks of one event loop that SIGTERM ends. A handler that the program has installed itself is kept."""

    def __init__(self) -> None:
        self._tasks: dict[object, asyncio.Task[object]] = {}
        self._cancelled: set[asyncio.Task[object]] = set()
        self._installed = False

    def enter_block(self, block: object) -> None:
        """Add a block, which runs in the current task."""
        task = asyncio.current_task()
        if task is None or not (self._installed or self._install_handler()):
            return
        self._tasks[block] = task

    def exit_block(self, block: object) -> bool:
        """Remove a block; return whether SIGTERM ended it and this block absorbs the cancellation."""
        task = self._tasks.pop(block, None)
        if not self._tasks and self._installed:
            self._remove_handler()
        if task is None or task not in self._cancelled or task in self._tasks.values():
            return False
        self._cancelled.discard(task)
        return task.uncancel() == 0

    def was_terminated(self, block: object) -> bool:
        """Return whether SIGTERM arrived during this block."""
        return self._tasks.get(block) in self._cancelled

    def _install_handler(self) -> bool:
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        ):
            return False
        with suppress(NotImplementedError, RuntimeError, ValueError):  # event loops and platforms without support
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_sigterm)
            self._installed = True
        return self._installed

    def _remove_handler(self) -> None:
        self._installed = False
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)  # restores the default action

    def _on_sigterm(self) -> None:
        self._remove_handler()  # a second SIGTERM ends the process immediately
        for task in set(self._tasks.values()):
            self._cancelled.add(task)
            task.cancel()


# SIGTERM can have only one handler in an event loop, so all clients of the loop share it.
_BLOCKS_BY_LOOP: "WeakKeyDictionary[asyncio.AbstractEventLoop, SigtermBlocks]" = WeakKeyDictionary()


def sigterm_blocks() -> SigtermBlocks:
    """Return the blocks of the running event loop."""
    loop = asyncio.get_running_loop()
    return _BLOCKS_BY_LOOP.setdefault(loop, SigtermBlocks())
