"""``Discovery``: finds services, and caches answers until a change affects them."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

from cachetools import LRUCache

from registry_server.catalog.query import Page, Query, freshness_at
from registry_server.catalog.replica import Replica
from registry_server.catalog.slices import Slices
from registry_server.instrumentation.counters import CacheCounters
from registry_server.model.filters import Filter
from registry_server.model.tokens import encode_page_token
from registry_server.runtime.pacing import SLICE_SECONDS

PageKey: TypeAlias = bytes | str
"""What a page answers: a serialised ``DiscoverServicesRequest``, or the query string of a REST request."""

MAX_PAGE_BYTES: Final = 3 << 20
"""Clients accept messages of 4 MiB by default."""
_ENTRY_BYTES: Final = 600
"""Overhead of a cached page in addition to its bytes."""
_SCAN_STEP_RECORDS: Final = 8
"""A record takes up to 0.3 ms, with the costliest filters."""
_SORT_STEP_NAMES: Final = 2_000
"""About 0.5 ms."""


class DiscoveryLimits(NamedTuple):
    """Limits on kept queries and cached answers."""

    queries: int = 512
    """Maximum number of kept queries."""
    names: int = 4_000_000
    """Maximum number of names that all kept queries list together; each costs 8 bytes."""
    cached_bytes: int = 64 << 20
    """Maximum size of the cached pages, current or outdated, and of their keys."""
    page_bytes: int = MAX_PAGE_BYTES
    """Size at which a page ends early."""
    slice_seconds: float = SLICE_SECONDS
    """How long scans run before other tasks."""


DEFAULT_LIMITS: Final = DiscoveryLimits()


class Discovery:
    """Finds services in the replica, and caches answers until a change affects them.

    A cached page carries its query and the version of it. When a page is looked up, its query applies the changes that
    it has missed and increments its version if one affects it, which makes all its pages outdated at once. So a change
    costs the same whatever is cached, and a caller whose query is costly to match waits for it alone.
    """

    def __init__(self, replica: Replica, limits: DiscoveryLimits = DEFAULT_LIMITS) -> None:
        self._replica = replica
        self._limits = limits
        self._pages: LRUCache[PageKey, Page] = LRUCache(limits.cached_bytes, getsizeof=attrgetter("size"))
        self._queries: OrderedDict[bytes, Query] = OrderedDict()
        self._stale = True
        self._refresh()
        self.slices = Slices(limits.slice_seconds)
        """Shares the time for scans among callers."""
        self.counters = CacheCounters()
        """Lookups of cached pages that succeeded, and pages built."""
        replica.on_position_changed.append(self._refresh)

    @property
    def stale(self) -> bool:
        """Whether answers may be behind the store."""
        return self._stale

    def set_stale(self, *, stale: bool) -> None:
        """Set whether answers may be behind the store."""
        self._stale = stale
        self._refresh()

    def cached_page(self, key: PageKey) -> Page | None:
        """Return the page kept under a key, unless a change has affected it since."""
        page = self._pages.get(key)
        if page is None or page.version != page.query.version:
            return None
        query = page.query
        if not query.is_current() and not (
            self.slices.run_now(self._catch_up(query)) and page.version == query.version
        ):
            return None
        self.counters.hits += 1
        self._queries.move_to_end(query.filter.key)
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
        query = await self.find_query(filter_)
        self.counters.misses += 1
        return self._build_page(query, size, after)

    async def find_query(self, filter_: Filter) -> Query:
        """Return the query of a filter, up to date; it is kept for further calls."""
        query = await self._kept_query(filter_) or await self._add_query(filter_)
        self._queries.move_to_end(filter_.key)
        return query

    async def matching_names(self, filter_: Filter) -> list[str]:
        """Return the names that match at the replica's revision on return: a new sorted list."""
        if kept := await self._kept_query(filter_):
            return list(kept.names)
        query = await self._find(filter_)
        names = query.names
        query.end()
        return names

    async def _kept_query(self, filter_: Filter) -> Query | None:
        """Return the kept query, up to date; ``None`` if there is none."""
        query = self._queries.get(filter_.key)
        if query is None:
            return None
        await self.slices.run(self._catch_up(query))
        if query.ended and self._queries.get(filter_.key) is query:
            del self._queries[filter_.key]
        return None if query.ended else query

    async def _add_query(self, filter_: Filter) -> Query:
        query = await self._find(filter_)
        # A concurrent call may have added the same query. No await from here on.
        kept = self._queries.get(filter_.key)
        if kept is not None and kept.tick == query.tick and not kept.ended:
            query.end()
            return kept
        if kept is not None:
            kept.end()
        self._queries[filter_.key] = query
        self._evict_queries()
        return query

    async def _find(self, filter_: Filter) -> Query:
        """Return a new query, up to date; the caller must keep or end it."""
        while True:
            query = Query(filter_, self._replica.anchors)
            try:
                await self.slices.run(self._scan(query))
                await self.slices.run(self._catch_up(query))
            except BaseException:
                query.end()
                raise
            if not query.ended:
                return query

    def _scan(self, query: Query) -> Iterator[None]:
        """Find the names of a query, at the ticks of its steps: all changes since its tick must be applied to them."""
        filter_, records = query.filter, self._replica.records
        candidates = yield from self._replica.index.find_candidates(filter_)
        found = list(records if candidates is None else candidates)
        if not filter_.terms_only:
            names, found = found, []
            for start in range(0, len(names), _SCAN_STEP_RECORDS):
                for name in names[start : start + _SCAN_STEP_RECORDS]:
                    record = records.get(name)
                    if record is not None and filter_.matches_beyond_terms(record):
                        found.append(name)
                yield
        for start in range(0, len(found), _SORT_STEP_NAMES):
            found[start : start + _SORT_STEP_NAMES] = sorted(found[start : start + _SORT_STEP_NAMES])
            yield
        found.sort()  # merges the sorted parts: 20 ms for 100,000 names
        query.names = found

    def _catch_up(self, query: Query) -> Iterator[None]:
        return query.catch_up(self._replica.history, len(self._replica.records))

    def _build_page(self, query: Query, size: int, after: str) -> Page:
        start = bisect_right(query.names, after) if after else 0
        records = [self._replica.records[name] for name in query.names[start : start + size]]
        sizes = [len(record.framed) for record in records]
        if sum(sizes) > self._limits.page_bytes:
            fitting = sum(end <= self._limits.page_bytes for end in accumulate(sizes))
            records = records[: fitting or 1]
        has_more = start + len(records) < len(query.names)
        token = encode_page_token(self._replica.secret, query.filter.key, records[-1].name) if has_more else ""
        return Page(query, records, token, *self._freshness)

    def _evict_queries(self) -> None:
        """Drop the least recently used queries until the limits hold."""
        names = sum(len(query.names) for query in self._queries.values())
        while len(self._queries) > 1 and (len(self._queries) > self._limits.queries or names > self._limits.names):
            query = self._queries.popitem(last=False)[1]
            names -= len(query.names)
            query.end()

    def _refresh(self) -> None:
        self._freshness = freshness_at(self._replica.revision, stale=self._stale)
