"""``InterestTable``: routes each change to the cached queries and watch groups whose filter it can affect."""

from collections.abc import Iterator
from typing import Protocol

from registry_server.catalog.change import Change
from registry_server.catalog.index import Index
from registry_server.model.filters import Filter


class Interest(Protocol):
    """A subscriber to the changes of the services that match its filter."""

    @property
    def filter(self) -> Filter:
        """Services that it subscribes to; constant while it is in the table."""

    def on_change(self, change: Change, *, matched: bool, matches: bool) -> None:
        """Handle a change to a service that matched before it, matches after it, or both. Must not block."""


class InterestTable:
    """Interests, indexed by their most selective terms, so that a change is checked only against likely matches."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._by_term: dict[str, dict[Interest, None]] = {}
        self._anchors: dict[Interest, tuple[str, ...]] = {}
        self._unanchored: dict[Interest, None] = {}

    def __len__(self) -> int:
        return len(self._anchors)

    def add_interest(self, interest: Interest) -> None:
        """Start routing changes to an interest."""
        anchors = self._index.anchors(interest.filter)
        self._anchors[interest] = anchors
        for term in anchors:
            self._by_term.setdefault(term, {})[interest] = None
        if not anchors:
            self._unanchored[interest] = None

    def remove_interest(self, interest: Interest) -> None:
        """Stop routing changes to an interest; do nothing if it is not in the table."""
        for term in self._anchors.pop(interest, ()):
            anchored = self._by_term[term]
            del anchored[interest]
            if not anchored:
                del self._by_term[term]
        self._unanchored.pop(interest, None)

    def publish_change(self, change: Change) -> None:
        """Notify every interest that the change affects."""
        before, after = change.before, change.after
        for interest in list(self._candidates(change)):
            matched = before is not None and interest.filter.matches(before)
            matches = after is not None and interest.filter.matches(after)
            if matched or matches:
                interest.on_change(change, matched=matched, matches=matches)

    def _candidates(self, change: Change) -> Iterator[Interest]:
        found = dict(self._unanchored)
        if self._by_term:
            for record in (change.before, change.after):
                for term in record.terms if record else ():
                    if term in self._by_term:
                        found |= self._by_term[term]
        return iter(found)
