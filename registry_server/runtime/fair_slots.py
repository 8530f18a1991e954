"""``FairSlots``: a bounded number of slots that many keys, such as owners or callers, share fairly."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

_MAX_WAITING: Final = 1_024
_RESERVE_DIVISOR: Final = 8


class TooManyWaiters(Exception):
    """No more waiting places are left for this key."""


class FairSlots:
    """Admits at most ``size`` holders at once and serves those that wait round robin over their keys.

    An eighth of the slots is left to keys that hold none: they find one although others keep theirs for minutes. Of the
    rest, a key takes another slot only while it holds fewer than are free (dynamic thresholds: Choudhury and Hahn,
    1998), so one key holds at most half of them, and two that want more hold a third each. Waiting places are divided
    by the second rule. Waiters of one key are served first in, first out.
    """

    def __init__(self, size: int, max_waiting: int = _MAX_WAITING) -> None:
        """Create free slots.

        Args:
            size: Number of slots.
            max_waiting: Number of places for waiters of all keys together.
        """
        self._free = size
        self._reserve = size // _RESERVE_DIVISOR
        self._places = max_waiting
        self._held: dict[Hashable, int] = {}
        # Keys in the order in which they are served. No key in it may take a slot now.
        self._waiting: OrderedDict[Hashable, dict[int, Callable[[], None]]] = OrderedDict()
        self._tickets = count(1)

    @asynccontextmanager
    async def slot(self, key: Hashable) -> AsyncIterator[None]:
        """Hold a slot while the context is active; wait for one first.

        Raises:
            TooManyWaiters: Nothing was done.
        """
        await self.acquire(key)
        try:
            yield
        finally:
            self.release(key)

    async def acquire(self, key: Hashable) -> None:
        """Wait for a slot and take it; ``release`` returns it. A waiter that is cancelled leaves at once.

        Raises:
            TooManyWaiters: Nothing was done.
        """
        taken = asyncio.get_running_loop().create_future()
        ticket = self.request(key, lambda: None if taken.done() else taken.set_result(None))
        try:
            await taken
        except asyncio.CancelledError:
            if not self.withdraw(key, ticket):  # the slot was taken before the cancellation arrived
                self.release(key)
            raise

    def request(self, key: Hashable, start: Callable[[], None]) -> int:
        """Take a slot now or once one is free, and then call ``start``, which must not raise.

        Returns:
            A ticket for ``withdraw``; 0 if a slot was free.

        Raises:
            TooManyWaiters: Nothing was done.
        """
        if self._take(key):
            start()
            return 0
        waiters = self._waiting.get(key, {})
        if len(waiters) >= self._places:
            raise TooManyWaiters
        self._places -= 1
        ticket = next(self._tickets)
        waiters[ticket] = start
        self._waiting[key] = waiters
        return ticket

    def withdraw(self, key: Hashable, ticket: int) -> bool:
        """Stop waiting; return whether the ticket was waiting."""
        waiters = self._waiting.get(key, {})
        if waiters.pop(ticket, None) is None:
            return False
        self._places += 1
        if not waiters:
            del self._waiting[key]
        return True

    def release(self, key: Hashable) -> None:
        """Return a slot, and pass it on to a waiter."""
        self._free += 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        passed = 0
        while passed < len(self._waiting) and self._free:
            following = next(iter(self._waiting))
            self._waiting.move_to_end(following)
            if self._take(following):
                passed = 0
                waiters = self._waiting[following]
                ticket = next(iter(waiters))
                start = waiters[ticket]
                self.withdraw(following, ticket)
                start()
            else:
                passed += 1  # at most ``size`` keys: each of them holds a slot

    def waiting(self, key: Hashable) -> int:
        """Return the number of waiters of a key."""
        return len(self._waiting.get(key, ()))

    def _take(self, key: Hashable) -> bool:
        held = self._held.get(key, 0)
        if held >= self._free - (self._reserve if held else 0):
            return False
        self._held[key] = held + 1
        self._free -= 1
        return True
