"""``Query`` and ``Page``: the names that match a filter, and a part of them as an answer."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from registry_server.catalog.anchors import Anchors
from registry_server.catalog.change import Change
from registry_server.catalog.history import History
from registry_server.model.filters import Filter
from registry_server.model.record import Record
from registry_server.model.wire import bytes_field, integer_field

# Fields of DiscoverServicesResponse; `services` (1) is how a record is framed.
_NEXT_PAGE_TOKEN, _TOTAL_SIZE, _REVISION, _STALE = 2, 3, 4, 5

_MIN_MISSED_CHANGES: Final = 16
"""So few changes are always applied: counting candidates would cost as much."""

Freshness: TypeAlias = tuple[int, bool, bytes]
"""Revision, staleness, and both as fields of ``DiscoverServicesResponse``."""


def freshness_at(revision: int, *, stale: bool) -> Freshness:
    """Return the freshness of answers at a revision."""
    return revision, stale, integer_field(_REVISION, revision) + integer_field(_STALE, int(stale))


class Query:
    """The names of the services that match one filter at one tick.

    A change costs a query nothing: it applies the changes that it has missed when it is asked again.
    """

    def __init__(self, filter_: Filter, anchors: Anchors) -> None:
        """Create a query without names at the current tick."""
        self.filter = filter_
        self.names: list[str] = []
        self.tick = anchors.tick
        self.version = 0
        """Incremented by every change that affects an answer. Pages of an earlier version are outdated."""
        self.ended = False
        """Whether it can no longer be brought up to date."""
        self._anchors = anchors
        self._subscription = anchors.subscribe(filter_)

    def is_current(self) -> bool:
        """Return whether no change since the query's tick can affect it; if so, it is then at the current tick."""
        anchors = self._anchors
        if self.tick == anchors.tick:
            return True
        if self.ended or anchors.changed_since(self._subscription, self.tick):
            return False
        self.tick = anchors.tick
        return True

    def catch_up(self, history: History, total: int) -> Iterator[None]:
        """Apply the changes up to the current tick, or end the query if they are not kept; yield after each.

        Args:
            history: The newest changes.
            total: Number of services. A query that missed more changes than there are candidates ends, too.
        """
        anchors = self._anchors
        while not self.ended and not self.is_current():
            missed = anchors.tick - self.tick
            change = history.recent(missed)
            if change is None or (
                missed > _MIN_MISSED_CHANGES and missed > anchors.count_candidates(self._subscription, total)
            ):
                self.end()
                return
            self._apply_change(change)
            self.tick += 1
            yield

    def _apply_change(self, change: Change) -> None:
        if change.is_notice:
            return
        name, after = change.name, change.after
        at = bisect_left(self.names, name)
        matched = at < len(self.names) and self.names[at] == name
        matches = (
            after is not None
            and self.filter.matches_but_name(after)
            and (matched or self.filter.matches_name(name))  # a service keeps its name
        )
        if matches and not matched:
            self.names.insert(at, name)
        elif matched and not matches:
            del self.names[at]
        self.version += matched or matches

    def end(self) -> None:
        """Make all pages outdated, and release the names and the filter, whose compiled pattern takes up to 1 MiB.

        Outdated pages refer to the query until they are evicted.
        """
        if not self.ended:
            self.ended = True
            self.version += 1
            self.names = []
            del self.filter
            self._anchors.unsubscribe(self._subscription)


class Compressed(NamedTuple):
    """The beginning of a gzip member, which something may follow (``gateway/compression.py``)."""

    data: bytes
    checksum: int
    """CRC-32 of what was compressed."""
    size: int
    """Size of what was compressed, in bytes."""


@dataclass(slots=True, eq=False)
class Page:
    """Some of the services that match a query, ordered by name.

    A cached page is shared by its callers. Only its freshness changes, whenever a look-up finds that it is current.
    """

    query: Query
    records: Sequence[Record]
    """Empty once the page is cached."""
    next_page_token: str
    revision: int
    """Newest revision at which the page is known to be current."""
    stale: bool
    """Whether the page may be behind the store."""
    freshness_wire: bytes
    """``revision`` and ``stale`` as fields of ``DiscoverServicesResponse``."""
    json: bytes = field(default=b"", init=False)
    """The answer of the REST API; empty until that has encoded it."""
    gzip: Compressed | None = field(default=None, init=False)
    """``json`` as the REST API has compressed it, once a client has asked for that."""
    size: int = field(default=0, init=False)
    """Memory that the page may use while it is cached, in bytes."""
    total_size: int = field(init=False)
    version: int = field(init=False)
    """Version of the query that the page answers."""
    _body: bytes = field(default=b"", init=False)

    def __post_init__(self) -> None:
        self.total_size, self.version = len(self.query.names), self.query.version

    def wire(self) -> bytes:
        """Return the page as a serialised ``DiscoverServicesResponse``. Not for a page that was kept as JSON."""
        return self._encoded_body() + self.freshness_wire

    def release_records(self) -> int:
        """Keep only the answer: the JSON if the REST API has encoded it, else the wire form.

        Outdated records would use several times the memory of the answer until the page is evicted.

        Returns:
            Size of the answer in bytes.
        """
        answer = self.json or self._encoded_body()
        self.records = ()
        return len(answer) + (len(self.gzip.data) if self.gzip else 0)

    def _encoded_body(self) -> bytes:
        if not self._body:
            parts = [record.framed for record in self.records]
            if self.next_page_token:
                parts.append(bytes_field(_NEXT_PAGE_TOKEN, self.next_page_token.encode()))
            parts.append(integer_field(_TOTAL_SIZE, self.total_size))
            self._body = b"".join(parts)
        return self._body
