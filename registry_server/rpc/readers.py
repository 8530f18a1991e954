"""``SlowReaders``: ends the watches of clients that do not read."""

import asyncio
import time
from typing import Final, Protocol

import structlog

from registry_server.instrumentation.counters import TransportCounters

_CHECKS_PER_TIMEOUT: Final = 4
"""A watch is ended at most a quarter of the timeout late."""

log = structlog.get_logger(__name__)


class UnreadStream(Protocol):
    """A stream whose client has not read its newest message."""

    def end_unread(self, seconds: float) -> None:
        """Release what waits to be sent: the client has not read a message within this time."""


class SlowReaders:
    """Watches that wait for their client to read, with the start time of each wait.

    A client that answers pings but never reads would pin the buffer of its watch. Its call is not cancelled: gRPC would
    keep the message anyway, and would never send a status.
    """

    def __init__(self, timeout: float, counters: TransportCounters) -> None:
        """Set the time, in seconds, within which a client must read one message."""
        self._timeout = timeout
        self._counters = counters
        self._since: dict[UnreadStream, float] = {}  # oldest first

    def write_started(self, stream: UnreadStream) -> None:
        """Start the timeout of a message."""
        self._since[stream] = time.monotonic()

    def write_finished(self, stream: UnreadStream) -> None:
        """Stop the timeout: the message was read, or the stream is over."""
        self._since.pop(stream, None)

    async def run(self) -> None:
        """End the watches of slow readers until cancelled."""
        while True:
            await asyncio.sleep(self._timeout / _CHECKS_PER_TIMEOUT)
            latest_start = time.monotonic() - self._timeout
            late = []
            for stream, since in self._since.items():
                if since > latest_start:
                    break
                late.append(stream)
            for stream in late:
                self.write_finished(stream)
                stream.end_unread(self._timeout)
            if late:
                self._counters.slow_readers += len(late)
                log.info("slow readers disconnected", calls=len(late))
