"""``Tombstones``: when and why services left."""

from typing import Final

from registry_server.catalog.change import Change

_MAX_BYTES: Final = 8 << 20
"""About 4,000 services of usual size."""


class Tombstones:
    """The newest removal of each service, bounded in bytes; the oldest are dropped first.

    They are kept apart from the history of changes: a resync ends that, and frequent changes push removals out of it.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._removals: dict[str, Change] = {}

    def get(self, name: str) -> Change | None:
        """Return the newest known removal of a service."""
        return self._removals.get(name)

    def newest_first(self) -> list[Change]:
        """Return the known removals."""
        return list(reversed(self._removals.values()))

    def apply_change(self, change: Change) -> None:
        """Record a change that is a removal."""
        if change.after is not None or change.before is None:
            return
        removals = self._removals
        if (earlier := removals.pop(change.name, None)) is not None:
            self._bytes -= earlier.size
        removals[change.name] = change
        self._bytes += change.size
        while self._bytes > self._max_bytes:
            self._bytes -= removals.pop(next(iter(removals))).size
