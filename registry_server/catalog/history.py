"""``History``: the newest changes, kept in memory so that a watch can resume from its cursor without reading Redis."""

from collections import deque
from collections.abc import Sequence
from itertools import islice

from registry_server.catalog.change import Change


class History:
    """Changes of consecutive revisions, bounded in number and bytes; the oldest are dropped first."""

    def __init__(self, max_changes: int, max_bytes: int, min_ms: int = 0, max_old_bytes: int | None = None) -> None:
        """Create an empty history.

        Args:
            max_changes: Maximum number of changes.
            max_bytes: Maximum size.
            min_ms: Changes that are less than so much older than the newest are dropped only because of ``max_bytes``.
            max_old_bytes: Size above which changes older than that are dropped; ``None`` = ``max_bytes``.
        """
        self._changes: deque[Change] = deque()
        self.max_changes = max_changes
        """Number of changes that are kept, apart from newer ones that are kept for their age."""
        self._max_bytes = max_bytes
        self._max_old_bytes = max_bytes if max_old_bytes is None else max_old_bytes
        self._min_ms = min_ms
        self._bytes = 0
        self._newest = 0

    def restart(self, revision: int) -> None:
        """Drop all changes; the next one must be that of ``revision + 1``."""
        self._changes.clear()
        self._bytes = 0
        self._newest = revision

    def append(self, change: Change) -> None:
        """Append the change of the next revision.

        Raises:
            ValueError: Its revision does not follow the newest one.
        """
        if change.revision != self._newest + 1:
            raise ValueError(f"revision {change.revision} does not follow {self._newest}")
        self._newest = change.revision
        self._changes.append(change)
        self._bytes += change.size
        while self._bytes > self._max_bytes or (
            (len(self._changes) > self.max_changes or self._bytes > self._max_old_bytes)
            and change.at_ms - self._changes[0].at_ms >= self._min_ms
        ):
            self._bytes -= self._changes.popleft().size

    @property
    def newest(self) -> Change | None:
        """The change of the newest revision, if it is kept."""
        return self._changes[-1] if self._changes else None

    @property
    def oldest(self) -> Change | None:
        """The oldest change that is kept."""
        return self._changes[0] if self._changes else None

    def at(self, revision: int) -> Change | None:
        """Return the change of a revision, if it is kept."""
        i = len(self._changes) - 1 - (self._newest - revision)
        return self._changes[i] if 0 <= i < len(self._changes) else None

    def recent(self, count: int) -> Change | None:
        """Return the oldest of the ``count`` newest changes, if it is kept."""
        return self._changes[-count] if count <= len(self._changes) else None

    def since(self, revision: int) -> Sequence[Change] | None:
        """Return all changes after a revision, oldest first; ``None`` if some were dropped or not yet applied."""
        count = self._newest - revision
        if count < 0 or count > len(self._changes):
            return None
        return list(islice(self._changes, len(self._changes) - count, None))
