"""Signals in the event loop, also on platforms whose loops have no ``add_signal_handler``."""

import asyncio
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

ENDING: Final = (signal.SIGINT, signal.SIGTERM)
"""The signals that end a command."""


@contextmanager
def on_signals(numbers: Iterable[signal.Signals], handle: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Call a function in the event loop for each of these signals, until the block ends or ``restore_default``.

    SIGINT is handled even if the process inherited it as ignored, as in a script's background: Ctrl-C ends the agent
    there, and its leases must not outlive it.
    """
    loop = asyncio.get_running_loop()

    def handle_in_loop(number: int, _frame: object) -> None:
        loop.call_soon_threadsafe(handle, signal.Signals(number))

    handled = tuple(numbers)
    for number in handled:
        try:
            loop.add_signal_handler(number, handle, number)
        except NotImplementedError:  # on Windows
            signal.signal(number, handle_in_loop)
    try:
        yield
    finally:
        restore_default(handled)


def restore_default(numbers: Iterable[signal.Signals]) -> None:
    """Let the default action of these signals happen again."""
    for number in numbers:
        with suppress(NotImplementedError):
            asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
