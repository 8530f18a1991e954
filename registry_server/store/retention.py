"""``EventRetention``: how many events the stream keeps."""

from collections import deque
from typing import Final, NamedTuple

_EVENTS_PER_MARK: Final = 64
_MAX_SEEDED_MARKS: Final = 32
MAX_STREAM_BYTES: Final = 64 << 20


class _Mark(NamedTuple):
    revision: int
    at_ms: int
    bytes_before: int
    """Size of all events before this one."""


class EventRetention:
    """Keeps a number of events, and older ones up to an age as far as they fit in a size.

    Each process computes the number from the events that it applies. An estimate is sufficient: the processes agree
    approximately, and Redis trims approximately.
    """

    def __init__(self, min_events: int, max_age_seconds: float = 0, max_bytes: int = MAX_STREAM_BYTES) -> None:
        self.max_length = min_events
        """Number of events after which the stream is trimmed."""
        self._min_events = min_events
        self._max_age_ms = round(max_age_seconds * 1000)
        self._max_bytes = max_bytes
        self._marks: deque[_Mark] = deque()
        self._bytes = 0
        self._newest = 0

    def start_at(self, oldest_revision: int, oldest_at_ms: int, revision: int, at_ms: int, size: int) -> None:
        """Begin with events that were committed before.

        Args:
            oldest_revision: Revision of the oldest one.
            oldest_at_ms: Its time, in milliseconds since the epoch.
            revision: Revision that follows the newest one.
            at_ms: Time of that revision.
            size: Average size in bytes.
        """
        self._marks.clear()
        self._bytes = 0
        count = max(revision - oldest_revision, 0)
        for i in range(min(count, _MAX_SEEDED_MARKS)):  # as if their times were evenly distributed
            part = i / min(count, _MAX_SEEDED_MARKS)
            before = round(count * part)
            at = round(oldest_at_ms + (at_ms - oldest_at_ms) * part)
            self._marks.append(_Mark(oldest_revision + before, at, before * size))
        self._bytes, self._newest = count * size, revision - 1

    def add_event(self, revision: int, at_ms: int, size: int) -> None:
        """Count an event.

        Args:
            revision: Its revision.
            at_ms: Time of its commit, in milliseconds since the epoch.
            size: Its approximate size in bytes.
        """
        marks = self._marks
        if revision < self._newest:  # another history
            marks.clear()
        if not marks or revision - marks[-1].revision >= _EVENTS_PER_MARK:
            marks.append(_Mark(revision, at_ms, self._bytes))
        self._newest = revision
        self._bytes += size
        while len(marks) > 1 and (
            at_ms - marks[1].at_ms > self._max_age_ms or self._bytes - marks[0].bytes_before > self._max_bytes
        ):
            marks.popleft()
        self.max_length = max(self._min_events, revision - marks[0].revision + 1)
