"""``Search``: which services match a text, in which order, while services change."""

import random

import pytest

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.service_pb2 import Capability, HealthStatus, Metadata, Service, ServiceFilter
from registry_server.catalog import Change, Discovery, Hits, Loads, Replica, Search
from registry_server.model.filters import EVERYTHING, Filter, compile_filter
from registry_server.model.record import Record
from registry_server.runtime.clock import system_clock
from registry_server.store import Position
from tests.support.samples import small_service

HEALTHY, UNHEALTHY = HealthStatus.HEALTH_STATUS_HEALTHY, HealthStatus.HEALTH_STATUS_UNHEALTHY
UPDATED, UNREGISTERED = EventType.EVENT_TYPE_SERVICE_UPDATED, EventType.EVENT_TYPE_SERVICE_UNREGISTERED
HEALTH_CHANGED = EventType.EVENT_TYPE_SERVICE_HEALTH_CHANGED


class Site:
    """A replica and its search."""

    def __init__(self, *, fill_seconds: float = 60) -> None:
        self.replica = Replica(100)
        self.replica.start_at((), Position("epoch", 0))
        self.discovery = Discovery(self.replica)
        self.discovery.set_stale(stale=False)
        self.loads = Loads(self.replica, default_ttl=300, clock=system_clock)
        self.search = Search(self.replica, self.discovery, self.loads, fill_seconds=fill_seconds)

    def put(
        self,
        name: str,
        description: str = "",
        *,
        status: HealthStatus.ValueType = HEALTHY,
        type_: EventType.ValueType = UPDATED,
        draining: bool = False,
        environment: str = "",
        capabilities: tuple[Capability, ...] = (),
    ) -> None:
        service = small_service(name, draining=draining, capabilities=capabilities)
        service.metadata.CopyFrom(Metadata(description=description, environment=environment))
        service.health.status = status
        self._change(name, service, type_)

    def remove(self, name: str) -> None:
        self._change(name, None, UNREGISTERED)

    def _change(self, name: str, service: Service | None, type_: EventType.ValueType) -> None:
        revision = self.replica.revision + 1
        after = None
        if service is not None:
            service.revision = revision
            after = Record(service.SerializeToString())
        self.replica.apply_change(
            Change(
                revision=revision,
                type=type_,
                reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
                at_ms=1,
                before=self.replica.records.get(name),
                after=after,
            )
        )

    async def find(self, text: str, filter_: Filter = EVERYTHING, limit: int = 10) -> list[str]:
        return [hit.record.name for hit in (await self.search.find(text, filter_, limit)).hits]


@pytest.mark.parametrize(
    "text",
    ["translation", "translated", "TRANSLATE", "transl", "transalte", "tranlate", "translote", "to translate"],
)
async def test_other_forms_prefixes_and_one_wrong_letter_match(text: str) -> None:
    site = Site()
    site.put("polyglot", "Translates documents")
    site.put("weather", "Forecasts rain")
    assert await site.find(text) == ["polyglot"]


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("summarise", "Summarizes text"),
        ("color", "Picks a colour"),
        ("resumé", "Reads a resume"),
        ("mail", "reads eMail"),
    ],
)
async def test_spellings_match(text: str, description: str) -> None:
    site = Site()
    site.put("agent", description)
    assert await site.find(text) == ["agent"]


async def test_available_services_come_first_then_relevance_then_name() -> None:
    site = Site()
    site.put("invoice-expert", "Pays each invoice", status=UNHEALTHY)
    site.put("b", "Reads an invoice")
    site.put("a", "Reads an invoice")
    site.put("invoice-reader", "Reads an invoice")
    site.put("leaving", "Reads an invoice", draining=True)
    assert await site.find("invoice") == ["invoice-reader", "a", "b", "invoice-expert", "leaving"]
    found = await site.search.find("invoice", EVERYTHING, 2)
    assert ([hit.record.name for hit in found.hits], found.total) == (["invoice-reader", "a"], 5)
    assert 100 >= found.hits[0].score > found.hits[1].score >= 1


async def test_hits_name_the_capabilities_that_match() -> None:
    site = Site()
    site.put(
        "office",
        capabilities=(
            Capability(name="convert-pdf", version="1"),
            Capability(name="print", version="1", description="Print a PDF document"),
            Capability(name="scan", version="1"),
        ),
    )
    (hit,) = (await site.search.find("pdf", EVERYTHING, 10)).hits
    assert hit.capabilities == ["convert-pdf", "print"]


async def test_changes_are_found_by_the_next_search() -> None:
    site = Site()
    site.put("one", "Counts zebras")
    assert await site.find("zebras") == ["one"]
    site.put("two", "Counts zebras")
    site.put("one", "Counts lions")
    assert (await site.find("zebras"), await site.find("lions")) == (["two"], ["one"])
    site.put("two", "Counts zebras", status=UNHEALTHY, type_=HEALTH_CHANGED)
    site.put("three", "Counts zebras")
    assert await site.find("zebras") == ["three", "two"]
    site.remove("three")
    assert await site.find("zebras") == ["two"]


async def test_filter_applies_before_the_limit() -> None:
    site = Site()
    for i in range(20):
        site.put(f"agent-{i:02}", "Counts zebras", environment="staging" if i < 19 else "production")
    production = compile_filter(ServiceFilter(environment="production"), "filter", [])
    found = await site.search.find("zebras", production, 1)
    assert ([hit.record.name for hit in found.hits], found.total) == (["agent-19"], 1)
    site.put("agent-00", "Counts zebras", environment="production")
    assert await site.find("zebras", production) == ["agent-00", "agent-19"]


async def test_answer_is_stale_until_the_index_has_all_services() -> None:
    site = Site(fill_seconds=0)
    site.put("one", "Counts zebras")
    found = await site.search.find("zebras", EVERYTHING, 10)
    assert (found.hits, found.stale, site.search.pending) == ([], True, 1)


@pytest.mark.parametrize("seed", range(20))
async def test_index_equals_a_new_one_after_any_changes(seed: int) -> None:
    chance = random.Random(seed)
    words = [left + right for left in ("trans", "count", "read", "pay") for right in ("", "er", "late", "ing", "zz")]
    site = Site()
    for _ in range(60):
        name = f"agent-{chance.randrange(12)}"
        if chance.random() < 0.3 and name in site.replica.records:
            site.remove(name)
        else:
            site.put(name, " ".join(chance.choices(words, k=4)), status=chance.choice((HEALTHY, UNHEALTHY)))
        if chance.random() < 0.3:
            await site.find(chance.choice(words))
    fresh = Search(site.replica, site.discovery, site.loads)
    everything = compile_filter(ServiceFilter(name_pattern="."), "filter", [])
    for text in words:
        expected = await fresh.find(text, EVERYTHING, 100)
        assert await site.search.find(text, EVERYTHING, 100) == expected
        assert await site.search.find(text, everything, 100) == expected


@pytest.mark.parametrize("seed", range(20))
async def test_answers_do_not_depend_on_what_a_filter_hides(seed: int) -> None:
    chance = random.Random(seed)
    words = ["translate", "translator", "transalte", "text", "texture", "zebra", "zebras", "contract", "contact"]
    alone, mixed = Site(), Site()
    for i in range(20):
        description, visible = " ".join(chance.choices(words, k=3)), chance.random() < 0.5
        for site in (alone, mixed) if visible else (mixed,):
            site.put(f"agent-{i}", description, environment="production" if visible else "secret")
    filter_ = compile_filter(ServiceFilter(environment="production"), "filter", [])
    for text in (*words, "text translate", "trans", "contrct zebra"):
        answers = [await site.search.find(text, filter_, 5) for site in (alone, mixed)]
        shown = [
            (found.total, [(hit.record.name, hit.score, hit.capabilities) for hit in found.hits]) for found in answers
        ]
        assert shown[0] == shown[1]


async def test_equally_relevant_services_are_ordered_by_load_then_name() -> None:
    site = Site()
    for name in ("a", "b", "c", "d", "e"):
        site.put(name, "translates texts", status=UNHEALTHY if name == "a" else HEALTHY)
    site.loads.add_reports([("b", "", 4, 4), ("d", "", 1, 8), ("e", "", 3, 0)])
    hits = (await site.search.find("translates texts", EVERYTHING, 10)).hits
    assert [hit.record.name for hit in hits] == ["c", "d", "e", "b", "a"]
    assert [hit.load and hit.load.in_flight for hit in hits] == [None, 1, 3, 4, None]
    assert [hit.record.name for hit in (await site.search.find("translates texts", EVERYTHING, 2)).hits] == ["c", "d"]


@pytest.mark.parametrize("text", ["zeb", "zzzzzzzzzz"], ids=["prefix", "misspelling"])
async def test_words_of_hidden_services_leave_turns_to_other_tasks(text: str) -> None:
    site = Site()
    for i in range(100):
        site.put(f"agent-{i}", f"zeb{i}", environment="test")
    other = compile_filter(ServiceFilter(environment="production"), "filter", [])
    assert await site.find(text, other) == []
    query = await site.discovery.find_query(other)
    steps = sum(1 for _ in site.search._search(text, other, query, 10, Hits()))
    assert steps > {"zeb": 100, "zzzzzzzzzz": 5}[text]


async def test_query_that_another_call_ends_does_not_fail_the_search() -> None:
    site = Site()
    site.put("agent", "Counts zebras", environment="production")
    production = compile_filter(ServiceFilter(environment="production"), "filter", [])
    assert await site.find("zebras", production) == ["agent"]
    query = await site.discovery.find_query(production)
    steps = iter(site.search._search("zebras", production, query, 10, Hits()))
    next(steps)
    query.end()
    assert list(steps)
    assert await site.find("zebras", production) == ["agent"]
