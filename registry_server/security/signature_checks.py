"""``SignatureChecks``: a bounded share of the event loop's time for verifying signatures, in fair turns."""

import asyncio
import time
from collections.abc import Callable, Hashable
from typing import Final, TypeVar

from cachetools import LRUCache

from registry_server.errors import Overloaded
from registry_server.runtime.fair_slots import FairSlots, TooManyWaiters

MAX_WAITING_CHECKS: Final = 10_000
"""Tokens that wait for verification, of one caller at most half of them; beyond it, clients would time out first."""
MAX_SHARE: Final = 0.5
"""Share of the time that verifying may take. It costs 0.05 to 1 ms a token, and forging a token costs nothing."""
BURST_SECONDS: Final = 0.1
"""Time that verifying may take at once after a pause."""
_MAX_SUBJECTS: Final = 10_000

_T = TypeVar("_T")


class SignatureChecks:
    """Runs one check after the other.

    Turns go round over callers. A caller is an address or, at that address, a subject of which a token was verified
    before: tokens that fail cannot delay those of a known subject by more than one turn per caller.
    """

    def __init__(
        self, *, burst_seconds: float = BURST_SECONDS, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst_seconds, self._monotonic = burst_seconds, monotonic
        self._slots = FairSlots(1, MAX_WAITING_CHECKS)
        self._verified: LRUCache[Hashable, None] = LRUCache(_MAX_SUBJECTS)
        self._next_at = float("-inf")

    async def run(self, address: str, subject: Hashable, check: Callable[[], _T]) -> _T:
        """Run a check when it is the caller's turn, and remember the subject if it succeeds.

        Args:
            address: Address of the caller.
            subject: Subject that the token claims.
            check: Verifies the signature.

        Raises:
            Overloaded: Too many tokens wait for verification.
        """
        caller = (address, subject if subject in self._verified else None)
        try:
            await self._slots.acquire(caller)
        except TooManyWaiters:
            text = f"limit of {MAX_WAITING_CHECKS} tokens waiting for verification reached"
            raise Overloaded("token-verifications", MAX_WAITING_CHECKS, text) from None
        try:
            delay = self._next_at - self._monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            began = time.thread_time()
            try:
                result = check()
            finally:
                cost = time.thread_time() - began
                self._next_at = max(self._next_at, self._monotonic() - self._burst_seconds) + cost / MAX_SHARE
        finally:
            self._slots.release(caller)
        self._verified[subject] = None
        return result
