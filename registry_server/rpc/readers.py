"""``SlowReaders``: disconnects clients that do not read."""

import asyncio
import time
from typing import Any, Final

import structlog

from registry_server.instrumentation.counters import TransportCounters
from registry_server.rpc.codec import Context

_CHECKS_PER_TIMEOUT: Final = 4
"""A client is disconnected at most a quarter of the timeout late."""

log = structlog.get_logger(__name__)


def current_call() -> "asyncio.Task[Any]":
    """Return the task of the current call, which runs the handler and sends its answer."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("not inside a call")
    return task


class SlowReaders:
    """Calls that wait for their client to read, with the start time of each wait.

    A client that answers pings but never reads would pin a buffer, a watch slot and a task.
    """

    def __init__(self, timeout: float, counters: TransportCounters) -> None:
        """Set the time, in seconds, within which a client must read one message."""
        self._timeout = timeout
        self._counters = counters
        self._since: dict[asyncio.Task[Any], float] = {}  # oldest first

    def write_started(self, call: "asyncio.Task[Any]") -> None:
        """Start the timeout of a message."""
        self._since[call] = time.monotonic()

    def write_finished(self, call: "asyncio.Task[Any]") -> None:
        """Stop the timeout: the message was read, or the call is over."""
        self._since.pop(call, None)

    async def write_message(self, message: Any, context: Context) -> None:
        """Write a message of a stream."""
        call = current_call()
        self.write_started(call)
        try:
            await context.write(message)
        finally:
            self.write_finished(call)

    async def run(self) -> None:
        """Disconnect slow readers until cancelled."""
        while True:
            await asyncio.sleep(self._timeout / _CHECKS_PER_TIMEOUT)
            latest_start = time.monotonic() - self._timeout
            late = []
            for call, since in self._since.items():
                if since > latest_start:
                    break
                late.append(call)
            for call in late:
                self.write_finished(call)
                call.cancel()  # resets the stream: a status would queue behind the unread messages
            if late:
                self._counters.slow_readers += len(late)
                log.info("slow readers disconnected", calls=len(late))
