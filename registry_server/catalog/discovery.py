"""``Discovery``: query answers joined from serialised records, cached until a change affects them."""

import asyncio
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Collection
from itertools import accumulate
from typing import Final, NamedTuple

from registry_server.catalog.change import Change
from registry_server.catalog.replica import Replica
from registry_server.instrumentation.counters import CacheCounters
from registry_server.model.filters import Filter
from registry_server.model.tokens import encode_page_token
from registry_server.model.wire import bytes_field, integer_field

# Fields of DiscoverServicesResponse; `services` (1) is how a record is framed.
_NEXT_PAGE_TOKEN, _TOTAL_SIZE, _REVISION, _STALE = 2, 3, 4, 5

MAX_PAGE_BYTES: Final = 3 << 20
"""Clients accept messages of 4 MiB by default."""
_ENTRY_BYTES: Final = 400
"""Overhead of a cached page or request in addition to its bytes."""


class DiscoveryLimits(NamedTuple):
    """Limits on kept queries and cached answers."""

    queries: int = 512
    """Maximum number of kept queries: each change is checked against those that it can affect."""
    names: int = 4_000_000
    """Maximum number of names that all kept queries list together; each costs 8 bytes."""
    cached_bytes: int = 64 << 20
    """Maximum size of the cached pages and of the requests that they answer."""
    page_bytes: int = MAX_PAGE_BYTES
    """Size at which a page ends early."""
    scan_slice_records: int = 500
    """Records scanned before other tasks run: about 1 ms with a regular expression."""


DEFAULT_LIMITS: Final = DiscoveryLimits()


class Query:
    """The names of the services that match one filter, updated by every change, and the pages built from them."""

    def __init__(self, filter_: Filter, names: list[str], owner: "Discovery") -> None:
        self.filter = filter_
        self.names = names
        self._owner = owner
        self.pages: dict[tuple[int, str], tuple[str, str, bytes]] = {}
        """(size, after) to the page's first and last name and its bytes without the revision."""
        self.requests: dict[bytes, tuple[int, str]] = {}
        """Serialised request to the key of the page that answers it."""

    def on_change(self, change: Change, *, matched: bool, matches: bool) -> None:
        """Apply a change and drop the pages that it affects."""
        if matched and matches:  # the list of names is the same: only the page that shows this service changes
            for page, (first, last, _) in list(self.pages.items()):
                if first <= change.name <= last:
                    self._owner.drop_page(self, page)
            return
        self.set_match(change.name, present=matches)
        self._owner.drop_pages(self)

    def set_match(self, name: str, *, present: bool) -> None:
        """Add a name to the list, or remove it."""
        at = bisect_left(self.names, name)
        listed = at < len(self.names) and self.names[at] == name
        if present and not listed:
            self.names.insert(at, name)
        elif listed and not present:
            del self.names[at]


class Discovery:
    """Finds services in the replica.

    ``cached_answer`` looks up complete answers by the bytes of the request; on a miss, ``find_page`` answers from a
    kept query or runs a new one.
    """

    def __init__(self, replica: Replica, limits: DiscoveryLimits = DEFAULT_LIMITS) -> None:
        self._replica = replica
        self._limits = limits
        self._cached: dict[bytes, bytes] = {}
        self._queries: OrderedDict[bytes, Query] = OrderedDict()
        self._kept_bytes = 0
        self._suffix = b""
        self._stale = True
        self._scans = asyncio.Lock()
        self.counters = CacheCounters()
        replica.on_position_changed.append(self._refresh_suffix)

    def set_stale(self, *, stale: bool) -> None:
        """Set whether answers may be behind the store."""
        self._stale = stale
        self._refresh_suffix()

    def cached_answer(self, request: bytes) -> bytes | None:
        """Return the cached answer to a request, if there is one.

        Args:
            request: A serialised ``DiscoverServicesRequest``.

        Returns:
            A serialised ``DiscoverServicesResponse``.
        """
        page = self._cached.get(request)
        if page is None:
            return None
        self.counters.hits += 1
        return page + self._suffix

    def cached_page(self, request: bytes) -> bytes | None:
        """Return the cached answer without its revision and ``stale`` fields, which change with every revision.

        Until a change affects the answer, the same object is returned: a caller that caches a value derived from it
        can check with ``is`` that the value is still valid.
        """
        return self._cached.get(request)

    async def find_page(self, filter_: Filter, size: int, after: str, request: bytes | None = None) -> bytes:
        """Return a page of the services that match.

        Args:
            filter_: Services to find.
            size: Maximum number of services.
            after: Name after which the page begins; empty for the first page.
            request: The serialised request, if ``cached_answer`` may answer identical requests from now on.

        Returns:
            A serialised ``DiscoverServicesResponse``.
        """
        query = self._queries.get(filter_.key)
        if query is None:
            query = await self._add_query(filter_)
        self._queries.move_to_end(filter_.key)
        page = query.pages.get((size, after))
        if page is not None:
            self.counters.hits += 1
        else:
            self.counters.misses += 1
            page = query.pages[size, after] = self._build_page(query, size, after)
            self._kept_bytes += len(page[2]) + _ENTRY_BYTES
        if request is not None and request not in query.requests:
            query.requests[request] = (size, after)
            self._cached[request] = page[2]
            self._kept_bytes += len(request) + _ENTRY_BYTES
        if self._kept_bytes > self._limits.cached_bytes:
            self._evict(query)
        return page[2] + self._suffix

    async def matching_names(self, filter_: Filter) -> list[str]:
        """Return the names that match at the replica's revision on return: a new sorted list."""
        query = self._queries.get(filter_.key)
        return list(query.names) if query else (await self._find_names(filter_))

    def drop_page(self, query: Query, page: tuple[int, str]) -> None:
        """Drop one page of a query and the cached answers that return it."""
        self._kept_bytes -= len(query.pages.pop(page)[2]) + _ENTRY_BYTES
        for request, answered_by in list(query.requests.items()):
            if answered_by == page:
                del query.requests[request], self._cached[request]
                self._kept_bytes -= len(request) + _ENTRY_BYTES

    def drop_pages(self, query: Query) -> None:
        """Drop all pages of a query and the cached answers that return them."""
        for _, _, page in query.pages.values():
            self._kept_bytes -= len(page) + _ENTRY_BYTES
        for request in query.requests:
            del self._cached[request]
            self._kept_bytes -= len(request) + _ENTRY_BYTES
        query.pages.clear()
        query.requests.clear()

    async def _add_query(self, filter_: Filter) -> Query:
        names = await self._find_names(filter_)
        # A concurrent call may have added the same query. No await from here on.
        query = self._queries.get(filter_.key)
        if query is None:
            query = self._queries[filter_.key] = Query(filter_, names, self)
            self._replica.interests.add_interest(query)
            self._evict(query)
        return query

    async def _find_names(self, filter_: Filter) -> list[str]:
        candidates = self._candidates(filter_)
        if filter_.terms_only:
            return sorted(candidates)
        if len(candidates) <= self._limits.scan_slice_records:
            records = self._replica.records
            return sorted(name for name in candidates if filter_.matches_beyond_terms(records[name]))
        async with self._scans:  # one at a time: scans share one core with all other calls
            return await self._scan(filter_)

    async def _scan(self, filter_: Filter) -> list[str]:
        """Scan many records in slices, then apply the changes made during the scan."""
        slice_records = self._limits.scan_slice_records
        while True:
            position = self._replica.position
            records = [self._replica.records[name] for name in self._candidates(filter_)]
            found: list[str] = []
            for start in range(0, len(records), slice_records):
                found += [r.name for r in records[start : start + slice_records] if filter_.matches_beyond_terms(r)]
                await asyncio.sleep(0)
            missed = self._replica.history.since(position.revision)
            if missed is not None and self._replica.position.epoch == position.epoch:
                query = Query(filter_, sorted(found), self)
                for change in missed:
                    query.set_match(change.name, present=change.after is not None and filter_.matches(change.after))
                return query.names

    def _candidates(self, filter_: Filter) -> Collection[str]:
        candidates = self._replica.index.candidates(filter_)
        return self._replica.records if candidates is None else candidates

    def _build_page(self, query: Query, size: int, after: str) -> tuple[str, str, bytes]:
        records = self._replica.records
        start = bisect_right(query.names, after) if after else 0
        names = query.names[start : start + size]
        parts = [records[name].framed for name in names]
        max_bytes = self._limits.page_bytes
        if sum(map(len, parts)) > max_bytes:
            fitting = sum(total <= max_bytes for total in accumulate(map(len, parts)))
            names, parts = names[: fitting or 1], parts[: fitting or 1]
        if start + len(names) < len(query.names):
            token = encode_page_token(query.filter.key, names[-1])
            parts.append(bytes_field(_NEXT_PAGE_TOKEN, token.encode()))
        parts.append(integer_field(_TOTAL_SIZE, len(query.names)))
        return (names[0], names[-1], b"".join(parts)) if names else ("", "", b"".join(parts))

    def _evict(self, newest: Query) -> None:
        """Drop the least recently used queries until the limits hold."""
        names = sum(len(query.names) for query in self._queries.values())
        limits = self._limits
        while len(self._queries) > 1 and (
            len(self._queries) > limits.queries or names > limits.names or self._kept_bytes > limits.cached_bytes
        ):
            query = self._queries.popitem(last=False)[1]
            names -= len(query.names)
            self.drop_pages(query)
            self._replica.interests.remove_interest(query)
        if self._kept_bytes > limits.cached_bytes:
            self.drop_pages(newest)

    def _refresh_suffix(self) -> None:
        self._suffix = integer_field(_REVISION, self._replica.revision) + integer_field(_STALE, int(self._stale))
