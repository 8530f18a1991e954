"""``Discovery``: finds services, and caches answers until a change affects them."""

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from itertools import accumulate
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from cachetools import LRUCache

from registry_server.catalog.query import Page, Query, freshness_at
from registry_server.catalog.replica import Replica
from registry_server.instrumentation.counters import CacheCounters
from registry_server.model.filters import Filter
from registry_server.model.tokens import encode_page_token

PageKey: TypeAlias = bytes | str
"""What a page answers: a serialised ``DiscoverServicesRequest``, or the query string of a REST request."""

MAX_PAGE_BYTES: Final = 3 << 20
"""Clients accept messages of 4 MiB by default."""
_ENTRY_BYTES: Final = 600
"""Overhead of a cached page in addition to its bytes."""


class DiscoveryLimits(NamedTuple):
    """Limits on kept queries and cached answers."""

    queries: int = 512
    """Maximum number of kept queries: each change is checked against those that it can affect."""
    names: int = 4_000_000
    """Maximum number of names that all kept queries list together; each costs 8 bytes."""
    cached_bytes: int = 64 << 20
    """Maximum size of the cached pages, current or outdated, and of their keys."""
    page_bytes: int = MAX_PAGE_BYTES
    """Size at which a page ends early."""
    scan_slice_records: int = 500
    """Records scanned before other tasks run: about 1 ms with a regular expression."""


DEFAULT_LIMITS: Final = DiscoveryLimits()


class Discovery:
    """Finds services in the replica, and caches answers until a change affects them.

    A cached page carries its query and the version of it. A change increments the version, and so makes any number of
    pages outdated at once; a page is compared with its query when it is looked up.
    """

    def __init__(self, replica: Replica, limits: DiscoveryLimits = DEFAULT_LIMITS) -> None:
        self._replica = replica
        self._limits = limits
        self._pages: LRUCache[PageKey, Page] = LRUCache(limits.cached_bytes, getsizeof=attrgetter("size"))
        self._queries: OrderedDict[bytes, Query] = OrderedDict()
        self._stale = True
        self._refresh()
        self._scans = asyncio.Lock()
        self.counters = CacheCounters()
        """Lookups of cached pages that succeeded, and pages built."""
        replica.on_position_changed.append(self._refresh)

    def set_stale(self, *, stale: bool) -> None:
        """Set whether answers may be behind the store."""
        self._stale = stale
        self._refresh()

    def cached_page(self, key: PageKey) -> Page | None:
        """Return the page kept under a key, unless a change has affected it since."""
        page = self._pages.get(key)
        if page is None or page.version != page.query.version:
            return None
        self.counters.hits += 1
        self._queries.move_to_end(page.query.filter.key)
        page.revision, page.stale, page.freshness_wire = self._freshness
        return page

    def keep_page(self, key: PageKey, page: Page) -> None:
        """Let ``cached_page`` return a page until a change affects it. Its records are released."""
        page.size = _ENTRY_BYTES + len(key) + page.release_records()
        with suppress(ValueError):  # larger than the cache
            self._pages[key] = page

    async def find_page(self, filter_: Filter, size: int, after: str) -> Page:
        """Return a page of the services that match.

        Args:
            filter_: Services to find.
            size: Maximum number of services.
            after: Name after which the page begins; empty for the first page.
        """
        query = self._queries.get(filter_.key) or await self._add_query(filter_)
        self._queries.move_to_end(filter_.key)
        self.counters.misses += 1
        return self._build_page(query, size, after)

    async def matching_names(self, filter_: Filter) -> list[str]:
        """Return the names that match at the replica's revision on return: a new sorted list."""
        query = self._queries.get(filter_.key)
        return list(query.names) if query else (await self._find_names(filter_))

    async def _add_query(self, filter_: Filter) -> Query:
        names = await self._find_names(filter_)
        # A concurrent call may have added the same query. No await from here on.
        query = self._queries.get(filter_.key)
        if query is None:
            query = self._queries[filter_.key] = Query(filter_, names)
            self._replica.interests.add_interest(query)
            self._evict_queries()
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
                query = Query(filter_, sorted(found))
                for change in missed:
                    query.set_match(change.name, present=change.after is not None and filter_.matches(change.after))
                return query.names

    def _candidates(self, filter_: Filter) -> Collection[str]:
        candidates = self._replica.index.candidates(filter_)
        return self._replica.records if candidates is None else candidates

    def _build_page(self, query: Query, size: int, after: str) -> Page:
        start = bisect_right(query.names, after) if after else 0
        records = [self._replica.records[name] for name in query.names[start : start + size]]
        sizes = [len(record.framed) for record in records]
        if sum(sizes) > self._limits.page_bytes:
            fitting = sum(end <= self._limits.page_bytes for end in accumulate(sizes))
            records = records[: fitting or 1]
        has_more = start + len(records) < len(query.names)
        token = encode_page_token(query.filter.key, records[-1].name) if has_more else ""
        return Page(query, records, token, *self._freshness)

    def _evict_queries(self) -> None:
        """Drop the least recently used queries until the limits hold."""
        names = sum(len(query.names) for query in self._queries.values())
        while len(self._queries) > 1 and (len(self._queries) > self._limits.queries or names > self._limits.names):
            query = self._queries.popitem(last=False)[1]
            names -= len(query.names)
            query.end()
            self._replica.interests.remove_interest(query)

    def _refresh(self) -> None:
        self._freshness = freshness_at(self._replica.revision, stale=self._stale)
