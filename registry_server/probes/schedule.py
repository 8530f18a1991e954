"""``Schedule``: what is due next, for any number of services, in one heap."""

import heapq
from itertools import count
from typing import Final

_COMPACT_ABOVE: Final = 64


class Schedule:
    """Numbers of services by the time when they are due; one time each."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._current: dict[int, int] = {}
        self._order = count()

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, number: int) -> bool:
        return number in self._current

    def set(self, number: int, due: float) -> None:
        """Sets when a number is due; what was set before no longer counts."""
        order = next(self._order)
        self._current[number] = order
        heapq.heappush(self._heap, (due, order, number))
        if len(self._heap) > 2 * len(self._current) + _COMPACT_ABOVE:
            self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def discard(self, number: int) -> None:
        """Takes a number out, if it is in."""
        self._current.pop(number, None)

    def next_due(self) -> float | None:
        """When the first number is due; ``None`` if there is none."""
        while self._heap and self._current.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> tuple[int, float] | None:
        """Takes out the first number that is due, with the time for which it was set."""
        due = self.next_due()
        if due is None or due > now:
            return None
        number = heapq.heappop(self._heap)[2]
        del self._current[number]
        return number, due
