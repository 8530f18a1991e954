"""``Readers``: cuts calls whose client does not read."""

import asyncio
import time
from typing import Any, Final

import structlog

from registry_server.rpc.codec import Context

_LOOKS: Final = 4
"""In the time that a client has: it is cut at most a quarter of that late."""

log = structlog.get_logger(__name__)


def this_call() -> "asyncio.Task[Any]":
    """The task of the call that is handled now: it runs the handler, and sends what that gives."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("no call is handled here")
    return task


class Readers:
    """Knows which calls wait for their client to read, and since when.

    HTTP/2 lets a client take its connection's pings and nothing else: without an end to our patience it would keep a
    message, a place among the watches and a task here for as long as it likes.
    """

    def __init__(self, patience: float) -> None:
        """Prepares it; ``patience`` is how many seconds one message may take."""
        self._patience = patience
        self._since: dict[asyncio.Task[Any], float] = {}  # oldest first
        self.cut = 0
        """How many were cut."""

    def begin(self, call: "asyncio.Task[Any]") -> None:
        """Notes that a message of a call is to be read."""
        self._since[call] = time.monotonic()

    def end(self, call: "asyncio.Task[Any]") -> None:
        """Notes that it was, or that the call is over."""
        self._since.pop(call, None)

    async def write(self, message: bytes, context: Context) -> None:
        """Writes a message of a stream."""
        call = this_call()
        self.begin(call)
        await context.write(message)
        self.end(call)  # a call that ends here instead is ended by its handler

    async def run(self) -> None:
        """Cuts, until cancelled."""
        while True:
            await asyncio.sleep(self._patience / _LOOKS)
            before = time.monotonic() - self._patience
            late = []
            for call, since in self._since.items():
                if since > before:
                    break
                late.append(call)
            for call in late:
                self.end(call)
                call.cancel()  # which resets the stream: a status would wait behind what is not read
            if late:
                self.cut += len(late)
                log.info("calls cut: their clients do not read", calls=len(late))
