"""SIGTERM handling: SIGTERM ends the registration blocks of the program.

The handler cancels the tasks of the blocks, and the outermost block of each task absorbs the cancellation. The effect
is that ``async with client.registration(...)`` is left as if its body had ended, and the program continues after it.
"""

import asyncio
import os
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

    @property
    def installed(self) -> bool:
        """Whether SIGTERM has the handler of this object."""
        return self._installed

    def restore_default_after_fork(self) -> None:
        """Restore the default action of SIGTERM in a forked child process."""
        self._installed = False
        self._tasks.clear()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

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


# asyncio writes the numbers of signals to a socket, which a forked child shares: SIGTERM to the child would end the
# blocks of its parent. The signal is blocked during a fork, until the child has the default action.
def _installed_blocks() -> list[SigtermBlocks]:
    return [blocks for blocks in _BLOCKS_BY_LOOP.values() if blocks.installed]


def _before_fork() -> None:
    if _installed_blocks():
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _after_fork_in_parent() -> None:
    if _installed_blocks():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def _after_fork_in_child() -> None:
    if inherited := _installed_blocks():
        for blocks in inherited:
            blocks.restore_default_after_fork()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
