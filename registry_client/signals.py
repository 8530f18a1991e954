"""SIGTERM ends blocks: their tasks are cancelled, and the outermost block of each takes the cancellation back.

So ``async with client.registration(...)`` is left as if its body had ended, and the program goes on after it.
"""

import asyncio
import signal
import threading
from contextlib import suppress
from weakref import WeakKeyDictionary


class Terminations:
    """The blocks of one event loop that SIGTERM ends. SIGTERM is left alone where the program has taken it."""

    def __init__(self) -> None:
        self._blocks: dict[object, asyncio.Task[object]] = {}
        self._cancelled: set[asyncio.Task[object]] = set()
        self._installed = False

    def enter(self, block: object) -> None:
        """Begins a block of the current task."""
        task = asyncio.current_task()
        if task is None or not (self._installed or self._install()):
            return
        self._blocks[block] = task

    def leave(self, block: object) -> bool:
        """Ends a block; tells whether SIGTERM ended it and its cancellation goes no further."""
        task = self._blocks.pop(block, None)
        if not self._blocks and self._installed:
            self._uninstall()
        if task is None or task not in self._cancelled or task in self._blocks.values():
            return False
        self._cancelled.discard(task)
        return task.uncancel() == 0

    def was_signalled(self, block: object) -> bool:
        """Whether SIGTERM came while this block was under way."""
        return self._blocks.get(block) in self._cancelled

    def _install(self) -> bool:
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        ):
            return False
        with suppress(NotImplementedError, RuntimeError, ValueError):  # loops and platforms that cannot
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_sigterm)
            self._installed = True
        return self._installed

    def _uninstall(self) -> None:
        self._installed = False
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)  # which restores the default that was there

    def _on_sigterm(self) -> None:
        self._uninstall()  # a second SIGTERM ends the process at once
        for task in set(self._blocks.values()):
            self._cancelled.add(task)
            task.cancel()


# A process has one SIGTERM and each event loop one handler for it, whichever clients there are.
_OF_LOOPS: "WeakKeyDictionary[asyncio.AbstractEventLoop, Terminations]" = WeakKeyDictionary()


def terminations() -> Terminations:
    """Those of the running event loop."""
    loop = asyncio.get_running_loop()
    return _OF_LOOPS.setdefault(loop, Terminations())
