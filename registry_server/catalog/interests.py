"""Who wants to know of which changes: cached queries and watchers in one structure."""

from collections.abc import Iterator
from typing import Protocol

from registry_server.catalog.change import Change
from registry_server.catalog.index import Index
from registry_server.model.filters import Filter


class Interest(Protocol):
    """A filter, and what is done when a change touches what it matches."""

    @property
    def filter(self) -> Filter:
        """What it is interested in; the same as long as it lives."""

    def on_change(self, change: Change, *, matched: bool, matches: bool) -> None:
        """Takes a change to a service that matched before it, or matches after it, or both. Must not block."""


class InterestTable:
    """Interests, each kept under its most selective terms: a change looks only at those that it could touch."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._by_term: dict[str, dict[Interest, None]] = {}
        self._anchors: dict[Interest, tuple[str, ...]] = {}
        self._unanchored: dict[Interest, None] = {}

    def __len__(self) -> int:
        return len(self._anchors)

    def add(self, interest: Interest) -> None:
        """Begins to tell an interest of changes."""
        anchors = self._index.anchors(interest.filter)
        self._anchors[interest] = anchors
        for term in anchors:
            self._by_term.setdefault(term, {})[interest] = None
        if not anchors:
            self._unanchored[interest] = None

    def discard(self, interest: Interest) -> None:
        """Stops telling it, if it was told."""
        for term in self._anchors.pop(interest, ()):
            under = self._by_term[term]
            del under[interest]
            if not under:
                del self._by_term[term]
        self._unanchored.pop(interest, None)

    def publish(self, change: Change) -> None:
        """Tells everyone whom a change touches."""
        before, after = change.before, change.after
        for interest in list(self._near(change)):
            matched = before is not None and interest.filter.matches(before)
            matches = after is not None and interest.filter.matches(after)
            if matched or matches:
                interest.on_change(change, matched=matched, matches=matches)

    def _near(self, change: Change) -> Iterator[Interest]:
        found = dict(self._unanchored)
        if self._by_term:
            for record in (change.before, change.after):
                for term in record.terms if record else ():
                    if term in self._by_term:
                        found |= self._by_term[term]
        return iter(found)
