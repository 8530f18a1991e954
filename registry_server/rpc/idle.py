"""``IdleStreams``: ends ``KeepAlive`` streams whose client sends nothing for too long, and all at shutdown."""

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from registry_server.errors import LimitExceeded, RegistryError, ShuttingDown

MAX_FIRST_MESSAGE_SECONDS: Final = 60.0
"""Time limit for the first message of a stream."""
_CHECK_INTERVAL_SECONDS: Final = 0.1
_STREAMS_PER_TURN: Final = 50
"""Streams that are ended in one turn of the event loop: about 10 ms (measured)."""


class IdleStream(Protocol):
    """A stream that waits for a message from its client."""

    has_received: bool
    """Whether it has received a message."""

    def refuse(self, reason: RegistryError) -> None:
        """Stop waiting and end the stream with an error."""


class IdleStreams:
    """Streams that wait for a message. A timer and a task for each of them would take 50 µs a message, and 4 KiB."""

    def __init__(self, idle_seconds: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Set the longest time without a message, in seconds; ``monotonic`` is the clock."""
        self._monotonic = monotonic
        # Each kind of wait has one limit, so the oldest is first.
        self._first: dict[IdleStream, float] = {}
        self._later: dict[IdleStream, float] = {}
        self._limits = ((self._first, min(idle_seconds, MAX_FIRST_MESSAGE_SECONDS)), (self._later, idle_seconds))
        self._idle_seconds = round(idle_seconds)
        self._shutting_down = False

    def __len__(self) -> int:
        return len(self._first) + len(self._later)

    def started(self, stream: IdleStream) -> None:
        """Begin to wait for a message."""
        (self._later if stream.has_received else self._first)[stream] = self._monotonic()

    def finished(self, stream: IdleStream) -> None:
        """Stop waiting: a message has arrived, or the stream is over."""
        if self._later.pop(stream, None) is None:
            self._first.pop(stream, None)

    def begin_shutdown(self) -> None:
        """End all streams that wait from now on."""
        self._shutting_down = True

    async def run(self) -> None:
        """End streams until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_SECONDS)
            await self.check()

    async def check(self) -> None:
        """End the streams that have waited for too long, or all at shutdown."""
        late = self._late()
        if not late:
            return
        # Let streams read what arrived while the event loop was busy.
        for _ in range(2):
            await asyncio.sleep(0)
        reason: RegistryError = ShuttingDown()
        if not self._shutting_down:
            message = "the client sent no message on this stream in time (limits.stream_idle_seconds)"
            reason = LimitExceeded("stream_idle_seconds", self._idle_seconds, message)
        for number, (stream, waits) in enumerate(late, 1):
            if waits.pop(stream, None) is not None:
                stream.refuse(reason)
            if number % _STREAMS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _late(self) -> list[tuple[IdleStream, dict[IdleStream, float]]]:
        now = self._monotonic()
        late = []
        for waits, limit in self._limits:
            for stream, since in waits.items():
                if now - since < limit and not self._shutting_down:
                    break
                late.append((stream, waits))
        return late
