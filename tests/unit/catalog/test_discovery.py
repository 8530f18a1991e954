import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import DiscoverServicesRequest, DiscoverServicesResponse
from ossa.registry.v1.service_pb2 import ServiceFilter, TagMatch
from registry_server.catalog import discovery as module
from registry_server.catalog.change import Change
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.errors import Violation
from registry_server.model.filters import Filter, compile_filter
from registry_server.model.record import Record
from registry_server.model.tokens import encode_page_token
from registry_server.store import Position
from tests.support.samples import small_service


class Catalog:
    """A replica that is changed by hand, discovery over it, and the plain dict that both must agree with."""

    def __init__(self, history_length: int = 1000) -> None:
        self.replica = Replica(history_length)
        self.discovery = Discovery(self.replica)
        self.replica.start_at([], Position("epoch", 0))
        self.held: dict[str, Record] = {}
        self.stale = False
        self.set_stale(stale=False)

    def set_stale(self, *, stale: bool) -> None:
        self.stale = stale
        self.discovery.set_stale(stale=stale)

    def put(self, name: str, **fields: Any) -> None:
        revision = self.replica.revision + 1
        service = small_service(name, **{"group": name, "revision": revision, **fields})
        self._apply(revision, name, Record(service.SerializeToString()))

    def delete(self, name: str) -> None:
        if name in self.held:
            self._apply(self.replica.revision + 1, name, None)

    def resync(self, revision: int, *gone: str) -> None:
        """Jumps to another epoch in which some services are not."""
        position = Position(self.replica.position.epoch + "'", revision)
        before = [self.held.pop(name) for name in gone if name in self.held]
        self.replica.resync([change(position.revision, record, None) for record in before], position)

    def _apply(self, revision: int, name: str, after: Record | None) -> None:
        before = self.held.pop(name, None)
        if after is not None:
            self.held[name] = after
        self.replica.apply_change(change(revision, before, after))

    async def answer(self, query: DiscoverServicesRequest, after: str = "") -> DiscoverServicesResponse:
        wire = await self.discovery.find_page(compiled(query), query.page_size, after, query.SerializeToString())
        return DiscoverServicesResponse.FromString(wire)

    def ready(self, query: DiscoverServicesRequest) -> DiscoverServicesResponse | None:
        wire = self.discovery.cached_answer(query.SerializeToString())
        return None if wire is None else DiscoverServicesResponse.FromString(wire)

    def expected(self, query: DiscoverServicesRequest, after: str = "") -> DiscoverServicesResponse:
        """The answer, by a look at every service."""
        filter_ = compiled(query)
        names = sorted(name for name, record in self.held.items() if filter_.matches(record))
        rest = [name for name in names if name > after]
        shown = rest[: query.page_size]
        return DiscoverServicesResponse(
            services=[self.held[name].message() for name in shown],
            next_page_token=encode_page_token(filter_.key, shown[-1]) if len(rest) > len(shown) else "",
            total_size=len(names),
            revision=self.replica.revision,
            stale=self.stale,
        )

    def assert_accounts_are_right(self) -> None:
        """What is said to be kept is what is kept, and nothing is ready that is not kept."""
        queries = self.discovery._queries.values()
        pages = [page for query in queries for _, _, page in query.pages.values()]
        requests = [request for query in queries for request in query.requests]
        each = module._ENTRY_BYTES
        assert self.discovery._kept_bytes == sum(len(kept) + each for kept in pages + requests)
        assert self.discovery._cached.keys() == set(requests)
        assert len(self.replica.interests) == len(queries)


def change(revision: int, before: Record | None, after: Record | None) -> Change:
    return Change(
        revision=revision,
        type=EventType.EVENT_TYPE_SERVICE_UPDATED,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
        at_ms=0,
        before=before,
        after=after,
    )


def asking(size: int = 100, token: str = "", **filter_: Any) -> DiscoverServicesRequest:
    return DiscoverServicesRequest(filter=ServiceFilter(**filter_), page_size=size, page_token=token)


def compiled(request: DiscoverServicesRequest) -> Filter:
    violations = list[Violation]()
    filter_ = compile_filter(request.filter, "filter", violations)
    assert not violations
    return filter_


@contextmanager
def bounds(**values: int) -> Iterator[None]:
    """Other limits; a context, since hypothesis runs many examples within one fixture."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(module, name, value)
        yield


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
    asking(),
    asking(2),
    asking(1, tags=["x"]),
    asking(tags=["x", "y"]),
    asking(2, tags=["x", "y"], tag_match=TagMatch.TAG_MATCH_ALL),
    asking(health=[1, 2]),
    asking(3, name_pattern="^A"),
    asking(version=">=1 <2"),
    asking(1, version="2.0.0"),
    asking(capability="read", capability_version=">=2"),
    asking(group="c", name_pattern="c|d"),
]
Step = Callable[[Catalog], None]
STEPS: st.SearchStrategy[Step] = st.one_of(
    st.tuples(NAMES, FIELDS).map(lambda put: lambda catalog: catalog.put(put[0], **put[1])),
    NAMES.map(lambda name: lambda catalog: catalog.delete(name)),
    st.tuples(st.integers(0, 20), st.sets(NAMES, max_size=3)).map(
        lambda resync: lambda catalog: catalog.resync(resync[0], *resync[1])
    ),
    st.booleans().map(lambda stale: lambda catalog: catalog.set_stale(stale=stale)),
)


async def ask_everything(catalog: Catalog) -> None:
    for query in QUERIES:
        after, more = "", True
        while more:
            request = asking(query.page_size, after and encode_page_token(compiled(query).key, after))
            request.filter.CopyFrom(query.filter)
            expected = catalog.expected(request, after)
            assert catalog.ready(request) in (None, expected)
            assert await catalog.answer(request, after) == expected
            assert catalog.ready(request) in (None, expected)
            more = bool(expected.next_page_token)
            after = expected.services[-1].name if more else ""
        catalog.assert_accounts_are_right()


@given(st.lists(STEPS, max_size=15))
async def test_answers_are_those_of_a_plain_dict_whatever_changes(steps: list[Step]) -> None:
    catalog = Catalog()
    for step in steps:
        step(catalog)
        await ask_everything(catalog)


@given(st.lists(STEPS, max_size=10), st.integers(1, 4), st.integers(0, 6000), st.integers(0, 12))
async def test_answers_are_right_whatever_the_bounds(steps: list[Step], queries: int, size: int, names: int) -> None:
    catalog = Catalog()
    with bounds(MAX_KEPT_QUERIES=queries, MAX_KEPT_BYTES=size, MAX_KEPT_NAMES=names, _SCAN_SLICE_RECORDS=1):
        for step in steps:
            step(catalog)
            await ask_everything(catalog)
            assert len(catalog.discovery._queries) <= queries
            assert catalog.discovery._kept_bytes <= size


@given(st.lists(st.tuples(STEPS, st.integers(0, 3)), max_size=12), st.integers(1, 8))
async def test_a_long_scan_takes_over_what_changes_meanwhile(steps: list[tuple[Step, int]], history: int) -> None:
    catalog = Catalog(history_length=history)  # so short that a scan must begin anew at times
    for i in range(12):
        catalog.put(f"{'ab'[i % 2]}{i:02}")
    request = asking(name_pattern="^a|d", version=">=1 <2")

    with bounds(_SCAN_SLICE_RECORDS=1):
        answering = asyncio.create_task(catalog.answer(request))
        for step, turns in steps:
            for _ in range(turns):
                await asyncio.sleep(0)
            if not answering.done():
                step(catalog)
        answer = await answering

    # The state cannot have changed since: nobody ran but the scan.
    assert answer == catalog.expected(request)
    assert catalog.ready(request) == catalog.expected(request)


async def test_a_scan_begins_anew_when_another_epoch_reaches_the_same_revision() -> None:
    catalog = Catalog()
    for name in "abc":
        catalog.put(name)
    request = asking(name_pattern=".")

    with bounds(_SCAN_SLICE_RECORDS=1):
        answering = asyncio.create_task(catalog.answer(request))
        await asyncio.sleep(0)
        catalog.resync(catalog.replica.revision, "a", "c")
        answer = await answering

    assert answer == catalog.expected(request)


async def test_a_scan_of_many_records_lets_others_run() -> None:
    catalog = Catalog()
    count = 3 * module._SCAN_SLICE_RECORDS
    for i in range(count):
        catalog.put(f"s{i:05}")
    request = asking(name_pattern="s0.*7$")
    answering = asyncio.create_task(catalog.answer(request))

    turns = 0
    while True:
        await asyncio.sleep(0)
        if answering.done():
            break
        turns += 1
        catalog.put(f"s{turns:05}", version="2.0.0")
        catalog.put(f"s0{turns:04}new7")
        catalog.delete(f"s0{turns}007")

    assert turns >= 3
    assert answering.result() == catalog.expected(request)


async def test_calls_that_ask_the_same_at_once_share_one_query() -> None:
    catalog = Catalog()
    for i in range(10):
        catalog.put(f"s{i}")
    request = asking(name_pattern="s[0-4]")

    with bounds(_SCAN_SLICE_RECORDS=2):
        answers = await asyncio.gather(*(catalog.answer(request) for _ in range(4)))

    assert answers == [catalog.expected(request)] * 4
    assert len(catalog.replica.interests) == 1
    catalog.assert_accounts_are_right()


async def test_an_answer_is_ready_under_the_bytes_of_its_request_and_no_others() -> None:
    catalog = Catalog()
    catalog.put("a", metadata={"tags": ["x"]})
    request = asking(tags=["x"])
    assert catalog.ready(request) is None

    answer = await catalog.answer(request)

    assert catalog.ready(request) == answer
    assert catalog.ready(asking(tags=["y"])) is None
    assert catalog.ready(asking(99, tags=["x"])) is None


async def test_without_its_bytes_a_request_makes_nothing_ready() -> None:
    catalog = Catalog()
    request = asking()

    await catalog.discovery.find_page(compiled(request), 100, "")

    assert not catalog.discovery._cached


async def paged() -> tuple[Catalog, list[DiscoverServicesRequest]]:
    """A catalog of six services with tag x in three ready pages of two, and one without the tag."""
    catalog = Catalog()
    for name in "abcdef":
        catalog.put(name, metadata={"tags": ["x"]})
    catalog.put("other", metadata={"tags": ["y"]})
    pages = []
    after = ""
    for _ in range(3):
        key = compiled(asking(tags=["x"])).key
        pages.append(asking(2, encode_page_token(key, after) if after else "", tags=["x"]))
        after = (await catalog.answer(pages[-1], after)).services[-1].name
    assert all(map(catalog.ready, pages))
    return catalog, pages


async def test_a_change_of_a_service_that_never_matched_leaves_all_pages_ready() -> None:
    catalog, pages = await paged()

    catalog.put("other", metadata={"tags": ["y", "z"]})
    catalog.put("bb")
    catalog.delete("other")

    for page, last in zip(pages, ["", "b", "d"], strict=True):
        assert catalog.ready(page) == catalog.expected(page, last)  # of the new revision


async def test_a_change_of_a_service_that_goes_on_matching_drops_only_the_page_that_shows_it() -> None:
    catalog, pages = await paged()

    catalog.put("c", metadata={"tags": ["x"], "description": "new"})

    assert [catalog.ready(page) is not None for page in pages] == [True, False, True]
    assert await catalog.answer(pages[1], "b") == catalog.expected(pages[1], "b")
    assert catalog.ready(pages[1]) is not None


@pytest.mark.parametrize(
    "step",
    [
        lambda catalog: catalog.put("e", metadata={"tags": ["z"]}),
        lambda catalog: catalog.delete("e"),
        lambda catalog: catalog.put("g", metadata={"tags": ["x"]}),
        lambda catalog: catalog.resync(50, "e"),
    ],
    ids=["stops matching", "is gone", "is new", "is gone by a resync"],
)
async def test_who_comes_or_goes_drops_all_pages_since_they_tell_how_many_match(step: Step) -> None:
    catalog, pages = await paged()
    bystander = asking(tags=["y"])
    await catalog.answer(bystander)

    step(catalog)

    assert not any(map(catalog.ready, pages))
    assert await catalog.answer(pages[0]) == catalog.expected(pages[0])
    assert catalog.ready(bystander) == catalog.expected(bystander)


async def test_an_empty_answer_stays_ready_until_somebody_matches() -> None:
    catalog = Catalog()
    request = asking(capability="read")
    await catalog.answer(request)

    catalog.put("a")
    assert catalog.ready(request) == catalog.expected(request)

    catalog.put("a", capabilities=[{"name": "read"}])
    assert catalog.ready(request) is None


async def test_ready_answers_say_whether_they_may_be_behind() -> None:
    catalog = Catalog()
    request = asking()
    await catalog.answer(request)

    for stale in (True, False):
        catalog.set_stale(stale=stale)
        answer = catalog.ready(request)
        assert answer is not None
        assert answer.stale is stale


async def test_the_queries_asked_for_longest_ago_are_dropped_first() -> None:
    catalog = Catalog()
    requests = [asking(group=name) for name in "abcd"]
    with bounds(MAX_KEPT_QUERIES=3):
        for request in requests[:3]:
            await catalog.answer(request)
        await catalog.answer(requests[0])

        await catalog.answer(requests[3])

    assert [catalog.ready(request) is not None for request in requests] == [True, False, True, True]
    assert len(catalog.replica.interests) == 3


async def test_queries_are_dropped_when_they_list_too_many_names() -> None:
    catalog = Catalog()
    for name in "abcd":
        catalog.put(name, metadata={"tags": ["x", "y", "z"]})
    requests = [asking(tags=[tag]) for tag in "xyz"]

    with bounds(MAX_KEPT_NAMES=8):
        for request in requests:
            await catalog.answer(request)

    assert [catalog.ready(request) is not None for request in requests] == [False, True, True]


async def test_pages_and_requests_that_take_too_many_bytes_go_with_the_oldest_query() -> None:
    catalog = Catalog()
    for tag in "xyz":
        catalog.put(tag, metadata={"tags": [tag], "description": "d" * 2000})
    requests = [asking(tags=[tag]) for tag in "xyz"]

    with bounds(MAX_KEPT_BYTES=7000):
        for request in requests:
            await catalog.answer(request)

    assert [catalog.ready(request) is not None for request in requests] == [False, True, True]
    catalog.assert_accounts_are_right()


async def test_an_answer_larger_than_the_bound_is_given_and_not_kept() -> None:
    catalog = Catalog()
    catalog.put("a", metadata={"description": "d" * 3000})
    request = asking()

    with bounds(MAX_KEPT_BYTES=1000):
        assert await catalog.answer(request) == catalog.expected(request)

    assert catalog.ready(request) is None
    assert catalog.discovery._kept_bytes == 0


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(0, 1000), st.integers(1, 8))
async def test_a_page_ends_before_it_is_too_large_and_the_next_one_goes_on(
    lengths: list[int], limit: int, size: int
) -> None:
    catalog = Catalog()
    for i, length in enumerate(lengths):
        catalog.put(f"s{i}", metadata={"description": "d" * length})
    everything = asking(size)

    names, after, more = list[str](), "", True
    with bounds(MAX_PAGE_BYTES=limit):
        while more:
            page = await catalog.answer(everything, after)
            frames = [len(catalog.held[service.name].framed) for service in page.services]
            assert sum(frames) <= limit or len(frames) == 1  # one service is given in any case
            assert len(frames) <= size
            assert page.total_size == len(lengths)
            names += [service.name for service in page.services]
            more = bool(page.next_page_token)
            after = names[-1] if names else ""
            if more and len(frames) < size:
                following = catalog.held[sorted(catalog.held)[len(names)]]
                assert sum(frames) + len(following.framed) > limit  # not shorter than need be

    assert names == sorted(catalog.held)


async def test_many_spellings_of_one_query_are_bounded_too() -> None:
    catalog = Catalog()
    catalog.put("a")

    with bounds(MAX_KEPT_BYTES=5000):
        for size in range(1, 200):
            await catalog.answer(asking(size))
            assert catalog.discovery._kept_bytes <= 5000

    assert len(catalog.discovery._queries) == 1
    catalog.assert_accounts_are_right()


async def test_the_names_that_match_are_a_list_of_the_callers_own() -> None:
    catalog = Catalog()
    for name in "ba":
        catalog.put(name)
    filter_ = compiled(asking(name_pattern="."))

    fresh = await catalog.discovery.matching_names(filter_)
    await catalog.answer(asking(name_pattern="."))
    kept = await catalog.discovery.matching_names(filter_)

    assert fresh == kept == ["a", "b"]
    kept.clear()
    assert await catalog.discovery.matching_names(filter_) == ["a", "b"]
