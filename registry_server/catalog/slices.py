"""``Slices``: long computations of many callers, in slices of the event loop's time."""

import time
from collections.abc import Iterator
from typing import Final

from registry_server.errors import Overloaded
from registry_server.runtime.fair_slots import FairSlots, TooManyWaiters
from registry_server.runtime.pacing import SLICE_SECONDS, Turn, leave_turns
from registry_server.security.identity import current_caller_key

_MAX_WAITING: Final = 10_000
"""As many as calls may be in flight by default."""


class Slices:
    """Runs computations that call after call may ask for: one slice in a turn, in turns for each caller."""

    def __init__(self, seconds: float = SLICE_SECONDS) -> None:
        """Set the length of a slice; a computation is interrupted only between two of its steps."""
        self._turn = Turn(seconds)
        self._slots = FairSlots(1, _MAX_WAITING)

    def run_now(self, steps: Iterator[None]) -> bool:
        """Run steps in what is left of this turn's slice; return whether they are complete."""
        deadline = self._turn.deadline()
        return all(time.perf_counter() < deadline for _ in steps)

    async def run(self, steps: Iterator[None]) -> None:
        """Run steps until they are complete. No other task runs between the last step and the return.

        Raises:
            Overloaded: Too many computations are waiting.
        """
        if self.run_now(steps):
            return
        caller = current_caller_key()
        while True:
            try:
                async with self._slots.slot(caller):
                    await leave_turns()
                    if self.run_now(steps):
                        return
            except TooManyWaiters:
                raise Overloaded("scans", _MAX_WAITING, "too many queries are waiting for their scan") from None
