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
from typing import Any, Final

MAX_NOTIFICATIONS_PER_TURN: Final = 128
"""An operation takes up to 0.1 ms to handle, and a turn should take no more than 10 ms."""


@contextmanager
def bulk_notifications() -> Iterator[None]:
    """Let this event loop read notifications in bulk, if grpc.aio starts to use the loop within the block."""
    loop: Any = asyncio.get_running_loop()
    add_reader = loop.add_reader

    def add_bulk_reader(reader: socket.socket, callback: Callable[..., object], *args: object) -> None:
        add_reader(reader, read_in_bulk, reader, lambda: callback(*args))

    loop.add_reader = add_bulk_reader
    try:
        yield
    finally:
        loop.add_reader = add_reader


def read_in_bulk(reader: socket.socket, handle: Callable[[], object]) -> None:
    """Read all but one of the bytes that have arrived, up to a limit; ``handle`` reads the last one."""
    arrived = array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, arrived)
    if (count := min(arrived[0], MAX_NOTIFICATIONS_PER_TURN) - 1) > 0:
        reader.recv(count)
    handle()
