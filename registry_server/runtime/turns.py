"""``Turns``: runs long computations in slices, so that the event loop serves other calls in between."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final

_SLICE_SECONDS: Final = 0.01


class Turns:
    """Runs computations in slices, one slice in each pass of the event loop.

    The computations take turns. Otherwise a pass would run a slice of each of them, and take as long as their number.
    """

    def __init__(
        self, slice_seconds: float = _SLICE_SECONDS, *, monotonic: Callable[[], float] = time.perf_counter
    ) -> None:
        """Set the length of a slice.

        Args:
            slice_seconds: Seconds after which a slice ends.
            monotonic: Clock, in seconds.
        """
        self._slice_seconds = slice_seconds
        self._monotonic = monotonic
        self._turn = asyncio.Lock()  # passed on in the order of arrival

    async def run(self, steps: Iterator[object]) -> None:
        """Run an iterator to its end; each of its steps takes much less than a slice."""
        ended = False
        while not ended:
            async with self._turn:
                end = self._monotonic() + self._slice_seconds
                ended = True
                for _ in steps:
                    if self._monotonic() >= end:
                        ended = False
                        break
                await asyncio.sleep(0)
