"""``AwaitedRequests``: bounds the requests that have not arrived completely."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final, Protocol

import structlog

from registry_server.errors import LimitExceeded, RegistryError, ShuttingDown
from registry_server.security.guard import Guard

MAX_REQUEST_SECONDS: Final = 30.0
"""Time limit for a request to arrive."""
SLOW_SECONDS: Final = 0.25
"""Requests that take longer count with the largest size that they may have: gRPC does not report what it holds."""
_NOTE: Final = ": a request that arrives slowly counts with grpc.max_message_bytes"
_CHECK_INTERVAL_SECONDS: Final = 0.1
_CALLS_PER_TURN: Final = 50
"""Calls that are rejected in one turn of the event loop: about 10 ms (measured)."""

log = structlog.get_logger(__name__)


class WaitingCall(Protocol):
    """A call that waits for a request."""

    caller_key: tuple[str, str]

    def refuse(self, reason: RegistryError) -> None:
        """Stop waiting and answer the call with an error."""


class AwaitedRequests:
    """Calls whose request has not arrived completely.

    gRPC holds what has arrived, does not report how much that is, and waits for the rest for as long as the client
    stays connected.
    """

    def __init__(self, guard: Guard, max_bytes: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Set the limits.

        Args:
            guard: Knows the callers and their limits on bytes.
            max_bytes: Largest size of a request.
            monotonic: Clock, in seconds.
        """
        self._guard = guard
        self._max_bytes = max_bytes
        self._monotonic = monotonic
        self._since: dict[WaitingCall, float] = {}  # oldest first
        self._shutting_down = False

    def __len__(self) -> int:
        return len(self._since)

    def started(self, call: WaitingCall) -> None:
        """Begin to wait for a request."""
        self._since[call] = self._monotonic()

    def finished(self, call: WaitingCall) -> None:
        """Stop waiting: the request has arrived, or the call is over."""
        self._since.pop(call, None)

    async def run(self) -> None:
        """Reject calls that exceed the limits until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL_SECONDS)
            await self.check()

    async def check(self) -> None:
        """Reject the calls that exceed the limits now."""
        if self._slow():
            # Let calls read what arrived while the event loop was busy.
            for _ in range(2):
                await asyncio.sleep(0)
            await self._reject(self._excessive(self._slow()))

    def begin_shutdown(self) -> None:
        """Reject all calls whose request is late from now on."""
        self._shutting_down = True

    def _slow(self) -> list[WaitingCall]:
        latest_start = self._monotonic() - SLOW_SECONDS
        slow = []
        for call, since in self._since.items():
            if since > latest_start:
                break
            slow.append(call)
        return slow

    def _excessive(self, slow: list[WaitingCall]) -> list[tuple[WaitingCall, RegistryError]]:
        """Return the calls that took too long, and the newest ones of the callers with the most slow ones."""
        if self._shutting_down:
            return [(call, ShuttingDown()) for call in slow]
        earliest_start, seconds = self._monotonic() - MAX_REQUEST_SECONDS, round(MAX_REQUEST_SECONDS)
        rejected: list[tuple[WaitingCall, RegistryError]] = []
        by_caller: dict[bool, dict[tuple[str, str], list[WaitingCall]]] = defaultdict(lambda: defaultdict(list))
        for call in slow:
            if self._since[call] < earliest_start:
                message = f"the request did not arrive within {seconds} seconds"
                rejected.append((call, LimitExceeded("request-seconds", seconds, message)))
            else:
                by_caller[self._guard.is_guest(call.caller_key)][call.caller_key].append(call)
        for callers in by_caller.values():
            in_flight = self._guard.places(next(iter(callers))).in_flight
            room = in_flight.bytes.limit - in_flight.bytes.held
            excess = sum(map(len, callers.values())) - max(1, room // self._max_bytes)
            rejected += [(call, in_flight.too_many_bytes(_NOTE)) for call in self._newest_of_most(callers, excess)]
        return rejected

    def _newest_of_most(self, callers: dict[tuple[str, str], list[WaitingCall]], number: int) -> list[WaitingCall]:
        """Remove a number of calls from the lists of their callers, and return them."""
        taken: list[WaitingCall] = []
        order = [(-len(calls), -self._since[calls[-1]], caller) for caller, calls in callers.items()]
        heapify(order)
        while len(taken) < number:
            _, _, caller = heappop(order)
            calls = callers[caller]
            taken.append(calls.pop())
            if calls:
                heappush(order, (-len(calls), -self._since[calls[-1]], caller))
        return taken

    async def _reject(self, calls: list[tuple[WaitingCall, RegistryError]]) -> None:
        for number, (call, reason) in enumerate(calls, 1):
            if call in self._since:
                self.finished(call)
                call.refuse(reason)
            if number % _CALLS_PER_TURN == 0:
                await asyncio.sleep(0)
        if calls:
            log.info("incomplete requests rejected", calls=len(calls))
