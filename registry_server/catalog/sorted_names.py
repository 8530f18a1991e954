"""``SortedNames``: a sorted set of texts that takes the same short time to change, however many there are."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from typing import Final

_MAX_BLOCK_NAMES: Final = 1_000


class SortedNames:
    """A sorted set, in blocks: inserting into one list of a million texts moves half of them."""

    def __init__(self, max_block: int = _MAX_BLOCK_NAMES) -> None:
        self._max_block = max_block
        self._blocks: list[list[str]] = []  # none is empty
        self._last: list[str] = []  # last name of each block

    def add(self, name: str) -> None:
        """Add a name that is not in the set."""
        if not self._blocks:
            self._blocks, self._last = [[name]], [name]
            return
        i = min(bisect_left(self._last, name), len(self._blocks) - 1)
        block = self._blocks[i]
        insort(block, name)
        if len(block) > self._max_block:
            half = len(block) // 2
            self._blocks[i : i + 1] = block[:half], block[half:]
            self._last[i : i + 1] = block[half - 1], block[-1]
        else:
            self._last[i] = block[-1]

    def remove(self, name: str) -> None:
        """Remove a name of the set."""
        i = bisect_left(self._last, name)
        block = self._blocks[i]
        del block[bisect_left(block, name)]
        if block:
            self._last[i] = block[-1]
        else:
            del self._blocks[i], self._last[i]

    def after(self, name: str, count: int) -> list[str]:
        """Return up to ``count`` names after a text, in order."""
        found: list[str] = []
        for block in self._blocks_after(name):
            start = bisect_right(block, name)
            found += block[start : start + count - len(found)]
            if len(found) == count:
                break
        return found

    def _blocks_after(self, name: str) -> Iterator[list[str]]:
        return (self._blocks[i] for i in range(bisect_right(self._last, name), len(self._blocks)))
