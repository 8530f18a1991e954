"""Reads the notifications of grpc.aio in bulk.

In grpc.aio (1.85) a thread collects completed operations and writes one byte for each to a socket pair. The event loop
handles all collected operations when a byte arrives, but reads only one byte in a turn. If more operations complete
than turns pass, about 280 unread bytes fill the socket and the thread blocks: from then on each turn handles a single
operation, in order, and a new call waits for those of all streams. With 100 changes a second to 1,000 watchers, 16
calls a second were accepted, and gRPC cancelled those that had waited for 30 seconds.
"""

import asyncio
import fcntl
import socket
import termios
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

MAX_NOTIFICATIONS_PER_TURN: Final = 128
"""An operation takes up to 0.1 ms to handle, and a turn should take no more than 10 ms."""
_QUIET_TURNS: Final = 16
"""Turns without a look at the unread notifications after there were none; a look takes 3 µs, of several a call."""


@contextmanager
def bulk_notifications() -> Iterator[None]:
    """Let this event loop read notifications in bulk, if grpc.aio starts to use the loop within the block."""
    loop: Any = asyncio.get_running_loop()
    add_reader = loop.add_reader

    def add_bulk_reader(reader: socket.socket, callback: Callable[..., object], *args: object) -> None:
        add_reader(reader, BulkReader(reader, partial(callback, *args) if args else callback).handle)

    loop.add_reader = add_bulk_reader
    try:
        yield
    finally:
        loop.add_reader = add_reader


class BulkReader:
    """Reads all but one of the bytes that have arrived, up to a limit; the handler reads the last one."""

    def __init__(self, reader: socket.socket, handle: Callable[[], object]) -> None:
        """Read from ``reader`` before each call of ``handle``, at once or within some turns."""
        self._reader, self._handle = reader, handle
        self._unread = array("i", [0])
        self._turns_to_look = 0

    def handle(self) -> None:
        """Handle a turn in which bytes have arrived."""
        if self._turns_to_look:
            self._turns_to_look -= 1
        else:
            fcntl.ioctl(self._reader, termios.FIONREAD, self._unread)
            if (count := min(self._unread[0], MAX_NOTIFICATIONS_PER_TURN) - 1) > 0:
                self._reader.recv(count)
            else:
                self._turns_to_look = _QUIET_TURNS
        self._handle()
