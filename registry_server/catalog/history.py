"""``History``: the newest changes, kept so that a watch can go on from its cursor without asking Redis."""

from collections import deque
from collections.abc import Sequence
from itertools import islice

from registry_server.catalog.change import Change


class History:
    """Changes of consecutive revisions, bounded in number and bytes; the oldest go first."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._changes: deque[Change] = deque()
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._newest = 0

    def restart(self, revision: int) -> None:
        """Forgets everything; the next change is the one after ``revision``."""
        self._changes.clear()
        self._bytes = 0
        self._newest = revision

    def append(self, change: Change) -> None:
        """Adds the change of the next revision."""
        if change.revision != self._newest + 1:
            raise ValueError(f"revision {change.revision} does not follow {self._newest}")
        self._newest = change.revision
        self._changes.append(change)
        self._bytes += change.size
        while len(self._changes) > self._most or self._bytes > self._most_bytes:
            self._bytes -= self._changes.popleft().size

    @property
    def newest(self) -> Change | None:
        """The change of the newest revision, if it is known."""
        return self._changes[-1] if self._changes else None

    @property
    def oldest(self) -> Change | None:
        """The change of the oldest revision that is kept."""
        return self._changes[0] if self._changes else None

    def at(self, revision: int) -> Change | None:
        """The change of a revision, if it is kept."""
        i = len(self._changes) - 1 - (self._newest - revision)
        return self._changes[i] if 0 <= i < len(self._changes) else None

    def since(self, revision: int) -> Sequence[Change] | None:
        """All changes after a revision, oldest first; ``None`` if some of them are no longer here or not yet known."""
        count = self._newest - revision
        if count < 0 or count > len(self._changes):
            return None
        return list(islice(self._changes, len(self._changes) - count, None))
