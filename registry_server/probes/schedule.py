"""``Schedule``: due times of any number of services, in one heap."""

import heapq
from itertools import count
from typing import Final

_COMPACT_ABOVE: Final = 64


class Schedule:
    """Numbers of services ordered by due time; one due time each."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, int]] = []
        self._current: dict[int, int] = {}
        self._order = count()

    def set_due(self, number: int, due: float) -> None:
        """Set the due time of a number, replacing an earlier one."""
        order = next(self._order)
        self._current[number] = order
        heapq.heappush(self._heap, (due, order, number))
        if len(self._heap) > 2 * len(self._current) + _COMPACT_ABOVE:
            self._heap = [entry for entry in self._heap if self._current.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def remove(self, number: int) -> None:
        """Remove a number, if present."""
        self._current.pop(number, None)

    def next_due(self) -> float | None:
        """Return the earliest due time; ``None`` if the schedule is empty."""
        while self._heap and self._current.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now: float) -> tuple[int, float] | None:
        """Remove and return the first due number with its due time; ``None`` if none is due."""
        due = self.next_due()
        if due is None or due > now:
            return None
        number = heapq.heappop(self._heap)[2]
        del self._current[number]
        return number, due
