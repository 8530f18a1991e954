"""Bounded turns of the event loop: time for computations, and the number of tasks that are woken at once."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

SLICE_SECONDS: Final = 0.002
"""Time that one kind of computation may take in a turn: other calls need several turns each, and wait for all kinds."""
_TURNS_BETWEEN_SLICES: Final = 32
"""gRPC accepts a call about every third turn. On an idle event loop, this many turns take 0.1 ms."""
_WAKE_UPS_PER_TURN: Final = 32
"""A woken stream or call takes about 0.1 ms to send its message."""

_MAX_BYTES_PER_TURN: Final = 64 << 10
"""Services of a batch that are prepared in one turn, with the one that exceeds it: the largest takes 40 ms (measured
with a schema of 31,000 empty lists)."""

_T = TypeVar("_T")


async def leave_turns(turns: int = _TURNS_BETWEEN_SLICES) -> None:
    """Leave some turns of the event loop to other tasks, before the next slice of a computation.

    With a slice in every turn, a burst of 300 calls would be accepted in a second instead of a tenth.
    """
    for _ in range(turns):
        await asyncio.sleep(0)


class Turn:
    """Time that one kind of computation may take in a turn of the event loop."""

    def __init__(self, seconds: float = SLICE_SECONDS, clock: Callable[[], float] = time.perf_counter) -> None:
        self._seconds = seconds
        self._clock = clock
        self._deadline: float | None = None

    def deadline(self) -> float:
        """Return the time at which the computation must stop; the first call of a turn sets it."""
        if self._deadline is None:
            self._deadline = self._clock() + self._seconds
            asyncio.get_running_loop().call_soon(self._end)
        return self._deadline

    async def yield_if_over(self) -> None:
        """Let other tasks run if the computation must stop."""
        if self._clock() >= self.deadline():
            await asyncio.sleep(0)

    def _end(self) -> None:
        self._deadline = None


class BatchTurns:
    """Ends the turn of the event loop after some services of a batch, whose writes are prepared in tasks."""

    def __init__(self, max_services: int, max_bytes: int = _MAX_BYTES_PER_TURN) -> None:
        self._max_services = max_services
        self._max_bytes = max_bytes
        self._services = self._bytes = 0

    async def add(self, size: int) -> None:
        """Count the size of a service; let the tasks run if a limit is reached."""
        self._services += 1
        self._bytes += size
        if self._services == self._max_services or self._bytes > self._max_bytes:
            self._services = self._bytes = 0
            await asyncio.sleep(0)


class FairQueue(Generic[_T]):
    """Items by key; takes them round robin over the keys, and first in, first out within a key."""

    def __init__(self) -> None:
        self._items: OrderedDict[Hashable, deque[_T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._items)

    def push(self, key: Hashable, item: _T) -> None:
        """Append an item."""
        items = self._items.get(key)
        if items is None:
            items = self._items[key] = deque()
        items.append(item)

    def pop(self) -> _T:
        """Remove and return the next item; the queue must not be empty."""
        key, items = next(iter(self._items.items()))
        item = items.popleft()
        if items:
            self._items.move_to_end(key)
        else:
            del self._items[key]
        return item


class Wakeups:
    """Resolves futures that tasks wait for: a limited number in each turn of the event loop, fairly among keys.

    Otherwise 5,000 watchers of one change would all send their message in one turn, which would take half a second.
    """

    def __init__(self, per_turn: int = _WAKE_UPS_PER_TURN, *, rest_turns: int = 0) -> None:
        """Create an empty queue.

        Args:
            per_turn: Futures that are resolved in one turn.
            rest_turns: Turns without wake-ups after a full one, for other tasks; gRPC accepts a call about every third.
        """
        self._per_turn = self._left = per_turn
        self._rest_turns = self._rest_left = rest_turns
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()
        self._scheduled = False

    def wake(self, future: "asyncio.Future[None]", key: Hashable = None) -> None:
        """Resolve a future in this turn or a later one, unless it is done by then."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start_turn)
        if self._left:
            self._resolve(future)
        else:
            self._queue.push(key, future)

    def _start_turn(self) -> None:
        was_idle = self._left == self._per_turn
        if not self._left and self._rest_left:
            self._rest_left -= 1
        else:
            self._left, self._rest_left = self._per_turn, self._rest_turns
        while self._queue and self._left:
            self._resolve(self._queue.pop())
        if was_idle and not self._queue:
            self._scheduled = False
        else:
            asyncio.get_running_loop().call_soon(self._start_turn)

    def _resolve(self, future: "asyncio.Future[None]") -> None:
        if not future.done():
            self._left -= 1
            future.set_result(None)
