"""``Index``: which services have which term."""

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from registry_server.model.filters import Filter
from registry_server.model.record import SEPARATOR, Record

_NOBODY: Final[frozenset[str]] = frozenset()


class Index:
    """An inverted index: term to the names that have it.

    A term that one service alone has (its group, mostly) keeps the bare name instead of a set, which would cost 216
    bytes for each service.
    """

    def __init__(self) -> None:
        self._postings: dict[str, dict[str, set[str] | str]] = {}
        self._capability_versions: dict[str, set[str]] = {}

    def add(self, record: Record) -> None:
        """Adds a service that is not in the index."""
        self._enter(record.name, record.terms)

    def remove(self, record: Record) -> None:
        """Removes a service as it was added."""
        self._leave(record.name, record.terms)

    def replace(self, before: Record, after: Record) -> None:
        """Moves a service from its terms to its new ones; those it keeps are not touched."""
        if before.terms != after.terms:
            old, new = set(before.terms), set(after.terms)
            self._leave(before.name, old - new)
            self._enter(after.name, new - old)

    def names(self, term: str) -> Collection[str]:
        """Names that have a term. Not to be changed, nor kept across an await."""
        posting = self._postings.get(term[0], {}).get(term, _NOBODY)
        return (posting,) if isinstance(posting, str) else posting

    def count(self, term: str) -> int:
        """How many services have a term."""
        return len(self.names(term))

    def distinct(self, kind: str) -> int:
        """How many distinct terms of a kind (a term's first letter) there are."""
        return len(self._postings.get(kind, ()))

    def values(self, kind: str) -> Iterator[str]:
        """Distinct values of a kind, in no order."""
        return (term[2:] for term in self._postings.get(kind, ()))

    def capability_versions(self, capability: str) -> Iterable[str]:
        """Distinct versions in which a capability is offered, in no order."""
        return self._capability_versions.get(capability, ())

    def candidates(self, filter_: Filter) -> Collection[str] | None:
        """Names that have all terms that the filter asks for; ``None`` if it asks for none."""
        groups: list[Collection[str]] = [self.names(term) for term in filter_.required]
        groups += [set().union(*map(self.names, group)) for group in filter_.any_of]
        if not groups:
            return None
        groups.sort(key=len)
        smallest, *others = groups
        if not others or not smallest:
            return smallest
        return set(smallest).intersection(*others)

    def anchors(self, filter_: Filter) -> tuple[str, ...]:
        """Terms of which every match has at least one, those that the fewest services have; empty if there are none."""
        groups = [(term,) for term in filter_.required] + list(filter_.any_of)
        return min(groups, key=lambda group: sum(map(self.count, group)), default=())

    def _enter(self, name: str, terms: Iterable[str]) -> None:
        for term in terms:
            postings = self._postings.setdefault(term[0], {})
            posting = postings.get(term)
            if posting is None:
                postings[term] = name
                if term[0] == "k":
                    capability, _, version = term[2:].partition(SEPARATOR)
                    self._capability_versions.setdefault(capability, set()).add(version)
            elif isinstance(posting, str):
                postings[term] = {posting, name}
            else:
                posting.add(name)

    def _leave(self, name: str, terms: Iterable[str]) -> None:
        for term in terms:
            postings = self._postings[term[0]]
            posting = postings[term]
            if isinstance(posting, set) and len(posting) > 1:
                posting.remove(name)
                continue
            del postings[term]
            if term[0] == "k":
                capability, _, version = term[2:].partition(SEPARATOR)
                versions = self._capability_versions[capability]
                versions.discard(version)
                if not versions:
                    del self._capability_versions[capability]
