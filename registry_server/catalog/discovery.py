"""Discovery: answers put together from ready-made bytes, kept until a change touches them."""

import asyncio
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Collection
from itertools import accumulate

from registry_server.catalog.change import Change
from registry_server.catalog.replica import Replica
from registry_server.instrumentation.counters import CacheCounters
from registry_server.model.filters import Filter
from registry_server.model.tokens import encode_page_token
from registry_server.model.wire import bytes_field, integer_field

# Fields of DiscoverServicesResponse; `services` (1) is how a record is framed.
_NEXT_PAGE_TOKEN, _TOTAL_SIZE, _REVISION, _STALE = 2, 3, 4, 5

MOST_QUERIES = 512
MOST_NAMES = 4_000_000
"""Bound of the names that all kept queries list together: 8 bytes each."""
MOST_KEPT_BYTES = 64 << 20
"""Bound of the pages that are kept, and of the requests that they answer."""
MOST_PAGE_BYTES = 3 << 20
"""A page ends here, though more was asked for: clients take messages of 4 MiB by default."""
_ENTRY_BYTES = 400  # what keeping one of them costs beside its bytes
_SCAN_SLICE = 500  # records between two looks at other tasks: about 1 ms with a regular expression


class Query:
    """The services that match one filter, kept up to date change by change, and the pages made of them."""

    def __init__(self, filter_: Filter, names: list[str], owner: "Discovery") -> None:
        self.filter = filter_
        self.names = names
        self._owner = owner
        self.pages: dict[tuple[int, str], tuple[str, str, bytes]] = {}
        """(size, after) to the page's first and last name and its bytes without revision."""
        self.requests: dict[bytes, tuple[int, str]] = {}
        """Serialised request to the page that answers it."""

    def on_change(self, change: Change, *, matched: bool, matches: bool) -> None:
        """Takes over a change and drops the answers that it can change."""
        if matched and matches:  # nobody came or went: only the page that shows this service differs
            for page, (first, last, _) in list(self.pages.items()):
                if first <= change.name <= last:
                    self._owner.drop_page(self, page)
            return
        self.update(change.name, present=matches)
        self._owner.drop_pages(self)

    def update(self, name: str, *, present: bool) -> None:
        """Lists a name, or does not list it any more."""
        at = bisect_left(self.names, name)
        listed = at < len(self.names) and self.names[at] == name
        if present and not listed:
            self.names.insert(at, name)
        elif listed and not present:
            del self.names[at]


class Discovery:
    """Finds services in the replica.

    Two steps, the quick one first: ``ready`` has whole answers under the bytes of requests; ``answer`` takes them from
    a kept query, or makes the query.
    """

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._ready: dict[bytes, bytes] = {}
        self._queries: OrderedDict[bytes, Query] = OrderedDict()
        self._kept_bytes = 0
        self._suffix = b""
        self._stale = True
        self._scans = asyncio.Lock()
        self.counters = CacheCounters()
        replica.on_moved.append(self._refresh_suffix)

    def set_stale(self, *, stale: bool) -> None:
        """Says whether answers may be behind the store."""
        self._stale = stale
        self._refresh_suffix()

    def ready(self, request: bytes) -> bytes | None:
        """Gives the ready answer to a request, if there is one.

        Args:
            request: A serialised ``DiscoverServicesRequest``.

        Returns:
            A serialised ``DiscoverServicesResponse``.
        """
        page = self._ready.get(request)
        if page is None:
            return None
        self.counters.hits += 1
        return page + self._suffix

    def ready_page(self, request: bytes) -> bytes | None:
        """Gives the ready answer without what differs from one moment to the next, revision and ``stale``.

        As long as no change touches the answer it is the same object: who makes something else of it can tell by
        ``is`` whether that still holds.
        """
        return self._ready.get(request)

    async def answer(self, filter_: Filter, size: int, after: str, request: bytes | None = None) -> bytes:
        """Answers a query.

        Args:
            filter_: Which services.
            size: Longest page.
            after: Name after which the page begins; empty for the first page.
            request: The serialised request, if ``ready`` may answer its like from now on.

        Returns:
            A serialised ``DiscoverServicesResponse``.
        """
        query = self._queries.get(filter_.key)
        if query is None:
            query = await self._make(filter_)
        self._queries.move_to_end(filter_.key)
        page = query.pages.get((size, after))
        if page is not None:
            self.counters.hits += 1
        else:
            self.counters.misses += 1
            page = query.pages[size, after] = self._page(query, size, after)
            self._kept_bytes += len(page[2]) + _ENTRY_BYTES
        if request is not None and request not in query.requests:
            query.requests[request] = (size, after)
            self._ready[request] = page[2]
            self._kept_bytes += len(request) + _ENTRY_BYTES
        if self._kept_bytes > MOST_KEPT_BYTES:
            self._make_room(query)
        return page[2] + self._suffix

    async def matching(self, filter_: Filter) -> list[str]:
        """Names that match, sorted: a list of the caller's own, of the revision that the replica has on return."""
        query = self._queries.get(filter_.key)
        return list(query.names) if query else (await self._find(filter_))

    def drop_page(self, query: Query, page: tuple[int, str]) -> None:
        """Drops one page of a query, and the ready answers that show it."""
        self._kept_bytes -= len(query.pages.pop(page)[2]) + _ENTRY_BYTES
        for request, shown in list(query.requests.items()):
            if shown == page:
                del query.requests[request], self._ready[request]
                self._kept_bytes -= len(request) + _ENTRY_BYTES

    def drop_pages(self, query: Query) -> None:
        """Drops all pages of a query, and the ready answers that show them."""
        for _, _, page in query.pages.values():
            self._kept_bytes -= len(page) + _ENTRY_BYTES
        for request in query.requests:
            del self._ready[request]
            self._kept_bytes -= len(request) + _ENTRY_BYTES
        query.pages.clear()
        query.requests.clear()

    async def _make(self, filter_: Filter) -> Query:
        names = await self._find(filter_)
        # Another call for the same filter may have been quicker; nothing is awaited from here on.
        query = self._queries.get(filter_.key)
        if query is None:
            query = self._queries[filter_.key] = Query(filter_, names, self)
            self._replica.interests.add(query)
            self._make_room(query)
        return query

    async def _find(self, filter_: Filter) -> list[str]:
        candidates = self._candidates(filter_)
        if filter_.by_terms_alone:
            return sorted(candidates)
        if len(candidates) <= _SCAN_SLICE:
            records = self._replica.records
            return sorted(name for name in candidates if filter_.passes_rest(records[name]))
        async with self._scans:  # one at a time: they share one core with every other call
            return await self._scan(filter_)

    async def _scan(self, filter_: Filter) -> list[str]:
        """Looks at many records, a slice at a time, then takes over what changed meanwhile."""
        while True:
            position = self._replica.position
            records = [self._replica.records[name] for name in self._candidates(filter_)]
            found: list[str] = []
            for start in range(0, len(records), _SCAN_SLICE):
                found += [r.name for r in records[start : start + _SCAN_SLICE] if filter_.passes_rest(r)]
                await asyncio.sleep(0)
            since = self._replica.history.since(position.revision)
            if since is not None and self._replica.position.epoch == position.epoch:
                query = Query(filter_, sorted(found), self)
                for change in since:
                    query.update(change.name, present=change.after is not None and filter_.matches(change.after))
                return query.names

    def _candidates(self, filter_: Filter) -> Collection[str]:
        candidates = self._replica.index.candidates(filter_)
        return self._replica.records if candidates is None else candidates

    def _page(self, query: Query, size: int, after: str) -> tuple[str, str, bytes]:
        records = self._replica.records
        start = bisect_right(query.names, after) if after else 0
        names = query.names[start : start + size]
        parts = [records[name].framed for name in names]
        if sum(map(len, parts)) > MOST_PAGE_BYTES:
            fitting = sum(total <= MOST_PAGE_BYTES for total in accumulate(map(len, parts)))
            names, parts = names[: fitting or 1], parts[: fitting or 1]
        if start + len(names) < len(query.names):
            token = encode_page_token(query.filter.key, names[-1])
            parts.append(bytes_field(_NEXT_PAGE_TOKEN, token.encode()))
        parts.append(integer_field(_TOTAL_SIZE, len(query.names)))
        return (names[0], names[-1], b"".join(parts)) if names else ("", "", b"".join(parts))

    def _make_room(self, newest: Query) -> None:
        """Drops the queries that were asked for longest ago, as far as the bounds want it."""
        names = sum(len(query.names) for query in self._queries.values())
        while len(self._queries) > 1 and (
            len(self._queries) > MOST_QUERIES or names > MOST_NAMES or self._kept_bytes > MOST_KEPT_BYTES
        ):
            query = self._queries.popitem(last=False)[1]
            names -= len(query.names)
            self.drop_pages(query)
            self._replica.interests.discard(query)
        if self._kept_bytes > MOST_KEPT_BYTES:
            self.drop_pages(newest)

    def _refresh_suffix(self) -> None:
        self._suffix = integer_field(_REVISION, self._replica.revision) + integer_field(_STALE, int(self._stale))
