import asyncio
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import pytest
from cachetools import LRUCache
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.registry_service_pb2 import DiscoverServicesRequest, DiscoverServicesResponse
from ossa.registry.v1.service_pb2 import ServiceFilter, TagMatch
from ossa_common.violations import Violation
from registry_server.catalog.discovery import _ENTRY_BYTES, DEFAULT_LIMITS, Discovery, DiscoveryLimits, PageKey
from registry_server.catalog.query import Page
from registry_server.catalog.replica import Replica
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record
from registry_server.model.tokens import encode_page_token
from registry_server.store import Position
from tests.support.changes import change
from tests.support.samples import small_service


class Catalog:
    """A replica changed by the test, a discovery over it, and a dict of the expected records."""

    def __init__(self, history_length: int = 1000, **limits: Any) -> None:
        self.replica = Replica(history_length)
        self.discovery = Discovery(self.replica, DiscoveryLimits(**limits))
        self.replica.start_at([], Position("epoch", 0))
        self.expected_records: dict[str, Record] = {}
        self.stale = False
        self.set_stale(stale=False)

    def token(self, filter_: Filter, after: str) -> str:
        return encode_page_token(self.replica.secret, filter_.key, after)

    def set_stale(self, *, stale: bool) -> None:
        self.stale = stale
        self.discovery.set_stale(stale=stale)

    def put_service(self, name: str, **fields: Any) -> None:
        revision = self.replica.revision + 1
        service = small_service(name, **{"group": name, "revision": revision, **fields})
        self._apply(revision, name, Record(service.SerializeToString()))

    def delete_service(self, name: str) -> None:
        if name in self.expected_records:
            self._apply(self.replica.revision + 1, name, None)

    def resync(self, revision: int, *removed: str) -> None:
        """Jump to another epoch in which some services do not exist."""
        position = Position(self.replica.position.epoch + "'", revision)
        before = [self.expected_records.pop(name) for name in removed if name in self.expected_records]
        self.replica.resync([change(position.revision, record, None) for record in before], position)

    def _apply(self, revision: int, name: str, after: Record | None) -> None:
        before = self.expected_records.pop(name, None)
        if after is not None:
            self.expected_records[name] = after
        self.replica.apply_change(change(revision, before, after))

    async def answer(self, query: DiscoverServicesRequest, after: str = "") -> DiscoverServicesResponse:
        page = await self.discovery.find_page(compiled(query), query.page_size, after)
        records = [record.message() for record in page.records]
        self.discovery.keep_page(query.SerializeToString(), page)
        answer = parsed(page)
        assert records == list(answer.services)
        return answer

    def cached_answer(self, query: DiscoverServicesRequest) -> DiscoverServicesResponse | None:
        page = self.discovery.cached_page(query.SerializeToString())
        return None if page is None else parsed(page)

    def expected_answer(self, query: DiscoverServicesRequest, after: str = "") -> DiscoverServicesResponse:
        """Return the answer computed by filtering every service."""
        filter_ = compiled(query)
        names = sorted(name for name, record in self.expected_records.items() if filter_.matches(record))
        remaining = [name for name in names if name > after]
        page = remaining[: query.page_size]
        return DiscoverServicesResponse(
            services=[self.expected_records[name].message() for name in page],
            next_page_token=self.token(filter_, page[-1]) if len(remaining) > len(page) else "",
            total_size=len(names),
            revision=self.replica.revision,
            stale=self.stale,
        )

    def assert_accounting_is_exact(self) -> None:
        """Assert that byte counts match the cache, and that every current page belongs to a kept query."""
        pages = self.discovery._pages
        for key, page in pages.items():
            answer = len(page.json) or len(page.wire()) - len(page.freshness_wire)
            assert page.size == _ENTRY_BYTES + len(key) + answer
            if page.version == page.query.version:
                assert self.discovery._queries[page.query.filter.key] is page.query
        assert pages.currsize == sum(page.size for page in pages.values())
        kept = [query for query in self.discovery._queries.values() if not query.ended]
        subscriptions = Counter(anchor for query in kept for anchor in query._subscription)
        assert self.replica.anchors._subscribers == subscriptions


def parsed(page: Page) -> DiscoverServicesResponse:
    """Return the message of a page, after checking that the page's values equal it."""
    message = DiscoverServicesResponse.FromString(page.wire())
    assert (page.total_size, page.next_page_token) == (message.total_size, message.next_page_token)
    assert (page.revision, page.stale) == (message.revision, message.stale)
    return message


def request_for(size: int = 100, token: str = "", **filter_: Any) -> DiscoverServicesRequest:
    return DiscoverServicesRequest(filter=ServiceFilter(**filter_), page_size=size, page_token=token)


def compiled(request: DiscoverServicesRequest) -> Filter:
    violations = list[Violation]()
    filter_ = compile_filter(request.filter, "filter", violations)
    assert not violations
    return filter_


NAMES = st.sampled_from(["a", "ab", "b", "ba", "c", "d"])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({"tags": st.lists(st.sampled_from("xyz"), unique=True)}),
        "version": st.sampled_from(["1.0.0", "1.5.0", "2.0.0", "next"]),
        "health": st.fixed_dictionaries({"status": st.integers(1, 3)}),
        "capabilities": st.lists(
            st.fixed_dictionaries({"name": st.just("read"), "version": st.sampled_from(["1.0.0", "2.0.0"])}), max_size=1
        ),
    },
)
QUERIES = [
    request_for(),
    request_for(2),
    request_for(1, tags=["x"]),
    request_for(tags=["x", "y"]),
    request_for(2, tags=["x", "y"], tag_match=TagMatch.TAG_MATCH_ALL),
    request_for(health=[1, 2]),
    request_for(3, name_pattern="^A"),
    request_for(version=">=1 <2"),
    request_for(1, version="2.0.0"),
    request_for(capability="read", capability_version=">=2"),
    request_for(group="c", name_pattern="c|d"),
]
Step = Callable[[Catalog], None]
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(NAMES, FIELDS).map(lambda put: lambda catalog: catalog.put_service(put[0], **put[1])),
    NAMES.map(lambda name: lambda catalog: catalog.delete_service(name)),
    st.tuples(st.integers(0, 20), st.sets(NAMES, max_size=3)).map(
        lambda resync: lambda catalog: catalog.resync(resync[0], *resync[1])
    ),
    st.booleans().map(lambda stale: lambda catalog: catalog.set_stale(stale=stale)),
)


async def check_all_queries(catalog: Catalog) -> None:
    for query in QUERIES:
        after, more = "", True
        while more:
            request = request_for(query.page_size, after and catalog.token(compiled(query), after))
            request.filter.CopyFrom(query.filter)
            expected = catalog.expected_answer(request, after)
            assert catalog.cached_answer(request) in (None, expected)
            assert await catalog.answer(request, after) == expected
            assert catalog.cached_answer(request) in (None, expected)
            more = bool(expected.next_page_token)
            after = expected.services[-1].name if more else ""
        catalog.assert_accounting_is_exact()


@given(st.lists(STEPS, max_size=15))
async def test_answers_equal_a_plain_filter_after_any_changes(steps: list[Step]) -> None:
    catalog = Catalog()
    for step in steps:
        step(catalog)
        await check_all_queries(catalog)


@given(st.lists(STEPS, max_size=10), st.integers(1, 4), st.integers(0, 6000), st.integers(0, 12))
async def test_answers_are_correct_with_any_limits(steps: list[Step], queries: int, size: int, names: int) -> None:
    catalog = Catalog(queries=queries, cached_bytes=size, names=names, slice_seconds=0)
    for step in steps:
        step(catalog)
        await check_all_queries(catalog)
        assert len(catalog.discovery._queries) <= queries
        assert catalog.discovery._pages.currsize <= size


@given(st.lists(st.tuples(STEPS, st.integers(0, 3)), max_size=12), st.integers(1, 8))
async def test_scan_includes_changes_made_during_the_scan(steps: list[tuple[Step, int]], history: int) -> None:
    catalog = Catalog(history_length=history, slice_seconds=0)  # so short that a scan sometimes restarts
    for i in range(12):
        catalog.put_service(f"{'ab'[i % 2]}{i:02}")
    request = request_for(name_pattern="^a|d", version=">=1 <2")

    answer_task = asyncio.create_task(catalog.answer(request))
    for step, turns in steps:
        for _ in range(turns):
            await asyncio.sleep(0)
        if not answer_task.done():
            step(catalog)
    answer = await answer_task

    # The state is unchanged since the scan ended: no other task ran.
    assert answer == catalog.expected_answer(request)
    assert catalog.cached_answer(request) == catalog.expected_answer(request)


async def test_scan_restarts_when_the_epoch_changes_at_the_same_revision() -> None:
    catalog = Catalog(slice_seconds=0)
    for name in "abc":
        catalog.put_service(name)
    request = request_for(name_pattern=".")

    answer_task = asyncio.create_task(catalog.answer(request))
    await asyncio.sleep(0)
    catalog.resync(catalog.replica.revision, "a", "c")
    answer = await answer_task

    assert answer == catalog.expected_answer(request)


async def test_scan_of_many_records_yields_to_other_tasks() -> None:
    catalog = Catalog(slice_seconds=0.0005)
    for i in range(5_000):
        catalog.put_service(f"s{i:05}")
    request = request_for(name_pattern="s0.*7$")
    answer_task = asyncio.create_task(catalog.answer(request))

    turns = 0
    while True:
        await asyncio.sleep(0)
        if answer_task.done():
            break
        turns += 1
        if turns % 20 == 0:  # more often than slices
            catalog.put_service(f"s{turns:05}", version="2.0.0")
            catalog.put_service(f"s0{turns:04}new7")
            catalog.delete_service(f"s0{turns:03}7")

    assert turns >= 60
    assert answer_task.result() == catalog.expected_answer(request)


async def test_concurrent_identical_requests_share_one_query() -> None:
    catalog = Catalog(slice_seconds=0)
    for i in range(10):
        catalog.put_service(f"s{i}")
    request = request_for(name_pattern="s[0-4]")

    answers = await asyncio.gather(*(catalog.answer(request) for _ in range(4)))

    assert answers == [catalog.expected_answer(request)] * 4
    catalog.assert_accounting_is_exact()


async def test_page_is_cached_under_the_exact_request_bytes() -> None:
    catalog = Catalog()
    catalog.put_service("a", metadata={"tags": ["x"]})
    request = request_for(tags=["x"])
    assert catalog.cached_answer(request) is None

    answer = await catalog.answer(request)

    assert catalog.cached_answer(request) == answer
    assert catalog.cached_answer(request_for(tags=["y"])) is None
    assert catalog.cached_answer(request_for(99, tags=["x"])) is None


async def test_request_bytes_and_an_equal_query_string_are_different_keys() -> None:
    catalog = Catalog()
    pages = dict[PageKey, Page]()
    for key in (b"tags=x", "tags=x"):
        pages[key] = await catalog.discovery.find_page(compiled(request_for(tags=["x"])), 100, "")
        catalog.discovery.keep_page(key, pages[key])

    assert [catalog.discovery.cached_page(key) is page for key, page in pages.items()] == [True, True]


async def test_json_of_a_page_counts_towards_the_limit() -> None:
    catalog = Catalog(cached_bytes=5_000)
    first, second = [await catalog.discovery.find_page(compiled(request_for()), 100, "") for _ in range(2)]
    for key, page in (("first", first), ("second", second)):
        page.json = b"x" * 3_000
        catalog.discovery.keep_page(key, page)

    assert catalog.discovery.cached_page("first") is None
    assert catalog.discovery.cached_page("second") is second
    catalog.assert_accounting_is_exact()


async def test_memory_of_outdated_pages_is_near_their_accounted_size() -> None:
    catalog = Catalog(history_length=1)
    filter_ = compiled(request_for())

    async def outdate_and_keep_page(key: str) -> None:
        for i in range(50):
            catalog.put_service(f"s{i:02}", version="1.0.0", metadata={"tags": ["x", "y"]})
        catalog.discovery.keep_page(key, await catalog.discovery.find_page(filter_, 50, ""))

    await outdate_and_keep_page("first")
    tracemalloc.start()
    try:
        for i in range(30):
            await outdate_and_keep_page(f"page {i}")
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert used < 1.5 * catalog.discovery._pages.currsize


async def test_outdated_pages_do_not_keep_the_compiled_filter() -> None:
    catalog = Catalog(queries=2)
    pages = []
    for i in range(10):
        pages.append(await catalog.discovery.find_page(compiled(request_for(name_pattern=f"a{i}")), 50, ""))
        catalog.discovery.keep_page(str(i), pages[-1])

    assert [hasattr(page.query, "filter") for page in pages] == [False] * 8 + [True] * 2


async def test_page_of_a_query_that_changed_before_it_was_kept_is_not_returned() -> None:
    catalog = Catalog()
    page = await catalog.discovery.find_page(compiled(request_for()), 100, "")
    catalog.put_service("a")

    catalog.discovery.keep_page("late", page)

    assert catalog.discovery.cached_page("late") is None
    assert page.revision == 0


async def test_page_is_as_fresh_as_its_last_lookup() -> None:
    catalog = Catalog()
    request = request_for(tags=["x"])
    await catalog.answer(request)
    catalog.put_service("unrelated")
    page = catalog.discovery.cached_page(request.SerializeToString())
    assert page is not None
    assert page.revision == 1

    catalog.put_service("a", metadata={"tags": ["x"]})

    assert catalog.discovery.cached_page(request.SerializeToString()) is None
    assert (page.revision, page.total_size) == (1, 0)


async def paged_catalog() -> tuple[Catalog, list[DiscoverServicesRequest]]:
    """Return a catalog with six services of tag x in three cached pages of two, and one service without the tag."""
    catalog = Catalog()
    for name in "abcdef":
        catalog.put_service(name, metadata={"tags": ["x"]})
    catalog.put_service("other", metadata={"tags": ["y"]})
    pages = []
    after = ""
    for _ in range(3):
        filter_ = compiled(request_for(tags=["x"]))
        pages.append(request_for(2, catalog.token(filter_, after) if after else "", tags=["x"]))
        after = (await catalog.answer(pages[-1], after)).services[-1].name
    assert all(map(catalog.cached_answer, pages))
    return catalog, pages


async def test_change_of_an_unmatched_service_keeps_all_pages() -> None:
    catalog, pages = await paged_catalog()

    catalog.put_service("other", metadata={"tags": ["y", "z"]})
    catalog.put_service("bb")
    catalog.delete_service("other")

    for page, last in zip(pages, ["", "b", "d"], strict=True):
        assert catalog.cached_answer(page) == catalog.expected_answer(page, last)  # with the new revision


async def test_change_of_a_matching_service_makes_the_pages_of_its_query_outdated() -> None:
    catalog, pages = await paged_catalog()

    catalog.put_service("c", metadata={"tags": ["x"], "description": "new"})

    assert not any(map(catalog.cached_answer, pages))
    assert await catalog.answer(pages[1], "b") == catalog.expected_answer(pages[1], "b")
    assert catalog.cached_answer(pages[1]) is not None


@pytest.mark.parametrize(
    "step",
    [
        lambda catalog: catalog.put_service("e", metadata={"tags": ["z"]}),
        lambda catalog: catalog.delete_service("e"),
        lambda catalog: catalog.put_service("g", metadata={"tags": ["x"]}),
        lambda catalog: catalog.resync(50, "e"),
    ],
    ids=["no longer matches", "removed", "added", "removed by a resync"],
)
async def test_added_or_removed_match_makes_all_pages_outdated(step: Step) -> None:
    catalog, pages = await paged_catalog()
    unrelated = request_for(tags=["y"])
    await catalog.answer(unrelated)

    step(catalog)

    assert not any(map(catalog.cached_answer, pages))
    assert await catalog.answer(pages[0]) == catalog.expected_answer(pages[0])
    assert catalog.cached_answer(unrelated) == catalog.expected_answer(unrelated)


async def test_empty_answer_is_cached_until_a_service_matches() -> None:
    catalog = Catalog()
    request = request_for(capability="read")
    await catalog.answer(request)

    catalog.put_service("a")
    assert catalog.cached_answer(request) == catalog.expected_answer(request)

    catalog.put_service("a", capabilities=[{"name": "read"}])
    assert catalog.cached_answer(request) is None


async def test_cached_answers_report_staleness() -> None:
    catalog = Catalog()
    request = request_for()
    await catalog.answer(request)

    for stale in (True, False):
        catalog.set_stale(stale=stale)
        answer = catalog.cached_answer(request)
        assert answer is not None
        assert answer.stale is stale


async def test_least_recently_used_query_is_dropped_first() -> None:
    catalog = Catalog(queries=3)
    requests = [request_for(group=name) for name in "abcd"]
    for request in requests[:3]:
        await catalog.answer(request)
    assert catalog.cached_answer(requests[0]) is not None  # a hit is a use

    await catalog.answer(requests[3])

    assert [catalog.cached_answer(request) is not None for request in requests] == [True, False, True, True]
    catalog.assert_accounting_is_exact()


async def test_queries_with_too_many_names_are_dropped() -> None:
    catalog = Catalog(names=8)
    for name in "abcd":
        catalog.put_service(name, metadata={"tags": ["x", "y", "z"]})
    requests = [request_for(tags=[tag]) for tag in "xyz"]

    for request in requests:
        await catalog.answer(request)

    assert [catalog.cached_answer(request) is not None for request in requests] == [False, True, True]


async def test_least_recently_used_page_is_dropped_at_the_byte_limit() -> None:
    catalog = Catalog(cached_bytes=7000)
    for tag in "xyz":
        catalog.put_service(tag, metadata={"tags": [tag], "description": "d" * 2000})
    requests = [request_for(tags=[tag]) for tag in "xyz"]

    for request in requests:
        await catalog.answer(request)

    assert [catalog.cached_answer(request) is not None for request in requests] == [False, True, True]
    catalog.assert_accounting_is_exact()


async def test_answer_larger_than_the_limit_is_returned_but_not_cached() -> None:
    catalog = Catalog(cached_bytes=1000)
    catalog.put_service("a", metadata={"description": "d" * 3000})
    request = request_for()

    assert await catalog.answer(request) == catalog.expected_answer(request)

    assert catalog.cached_answer(request) is None
    assert catalog.discovery._pages.currsize == 0


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(0, 1000), st.integers(1, 8))
async def test_oversized_page_ends_early_and_the_next_one_continues(lengths: list[int], limit: int, size: int) -> None:
    catalog = Catalog(page_bytes=limit)
    for i, length in enumerate(lengths):
        catalog.put_service(f"s{i}", metadata={"description": "d" * length})
    everything = request_for(size)

    names, after, more = list[str](), "", True
    while more:
        page = await catalog.answer(everything, after)
        frames = [len(catalog.expected_records[service.name].framed) for service in page.services]
        assert sum(frames) <= limit or len(frames) == 1  # a page always contains one service
        assert len(frames) <= size
        assert page.total_size == len(lengths)
        names += [service.name for service in page.services]
        more = bool(page.next_page_token)
        after = names[-1] if names else ""
        if more and len(frames) < size:
            next_record = catalog.expected_records[sorted(catalog.expected_records)[len(names)]]
            assert sum(frames) + len(next_record.framed) > limit  # the page is as long as possible

    assert names == sorted(catalog.expected_records)


async def test_many_page_sizes_of_one_query_stay_within_the_limit() -> None:
    catalog = Catalog(cached_bytes=5000)
    catalog.put_service("a")

    for size in range(1, 200):
        await catalog.answer(request_for(size))
        assert catalog.discovery._pages.currsize <= 5000

    assert len(catalog.discovery._queries) == 1
    catalog.assert_accounting_is_exact()


class ObservedPages(LRUCache[PageKey, Page]):
    """Counts accesses to cached pages."""

    accesses = 0

    def __getitem__(self, key: PageKey) -> Page:
        self.accesses += 1
        return super().__getitem__(key)

    def __setitem__(self, key: PageKey, page: Page) -> None:
        self.accesses += 1
        super().__setitem__(key, page)

    def __delitem__(self, key: PageKey) -> None:
        self.accesses += 1
        super().__delitem__(key)

    def __iter__(self) -> Iterator[PageKey]:
        raise AssertionError("a change must not iterate over the cached pages")


@pytest.mark.parametrize(
    "step",
    [
        lambda catalog: catalog.put_service("a", version="2.0.0"),
        lambda catalog: catalog.put_service("b"),
        lambda catalog: catalog.delete_service("a"),
        lambda catalog: catalog.resync(50, "a"),
    ],
    ids=["updated", "added", "removed", "removed by a resync"],
)
async def test_change_touches_none_of_the_pages_that_it_makes_outdated(step: Step) -> None:
    catalog = Catalog()
    catalog.put_service("a")
    pages = catalog.discovery._pages = ObservedPages(DEFAULT_LIMITS.cached_bytes, getsizeof=attrgetter("size"))
    filter_, keys = compiled(request_for()), [f"page {i}" for i in range(20_000)]
    for key in keys:
        catalog.discovery.keep_page(key, await catalog.discovery.find_page(filter_, 1, ""))
    assert (len(pages), pages.accesses) == (len(keys), len(keys))

    step(catalog)

    assert pages.accesses == len(keys)
    assert not any(map(catalog.discovery.cached_page, keys))


async def test_evicting_a_query_touches_none_of_its_pages() -> None:
    catalog = Catalog(queries=1)
    pages = catalog.discovery._pages = ObservedPages(DEFAULT_LIMITS.cached_bytes, getsizeof=attrgetter("size"))
    filter_ = compiled(request_for(tags=["x"]))
    for i in range(100):
        catalog.discovery.keep_page(f"page {i}", await catalog.discovery.find_page(filter_, 1, ""))

    await catalog.discovery.find_page(compiled(request_for(tags=["y"])), 1, "")

    assert pages.accesses == 100
    assert catalog.discovery.cached_page("page 0") is None


async def test_matching_names_returns_a_new_list() -> None:
    catalog = Catalog()
    for name in "ba":
        catalog.put_service(name)
    filter_ = compiled(request_for(name_pattern="."))

    scanned = await catalog.discovery.matching_names(filter_)
    await catalog.answer(request_for(name_pattern="."))
    kept = await catalog.discovery.matching_names(filter_)

    assert scanned == kept == ["a", "b"]
    kept.clear()
    assert await catalog.discovery.matching_names(filter_) == ["a", "b"]
