import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossa.registry.v1.event_pb2 import EventReason, EventType
from ossa.registry.v1.registry_service_pb2 import CapabilitySummary, RegistryStats
from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.catalog.change import Change
from registry_server.catalog.discovery import Discovery
from registry_server.catalog.replica import Replica
from registry_server.catalog.slices import Slices
from registry_server.catalog.statistics import Capabilities, Statistics, registry_stats
from registry_server.model.filters import EVERYTHING
from registry_server.model.record import Record
from registry_server.security.visibility import Visibility
from registry_server.store import Position
from tests.support.samples import small_service


def offering(*capabilities: str, **fields: Any) -> dict[str, Any]:
    """Fields of a service with capabilities given as ``name``, ``name@version`` or ``name@version description``."""
    offered = []
    for text in capabilities:
        head, _, description = text.partition(" ")
        name, _, version = head.partition("@")
        offered.append({"name": name, "version": version, "description": description})
    return {"capabilities": offered, **fields}


class Catalog:
    """A replica changed by the test."""

    def __init__(self, slice_seconds: float = 10.0, **limits: int) -> None:
        self.replica = Replica(history_length=10)
        self.replica.start_at([], Position("epoch", 0))
        self.capabilities = Capabilities(self.replica, Slices(slice_seconds), **limits)

    def put_service(self, name: str, **fields: Any) -> None:
        revision = self.replica.revision + 1
        service = small_service(name, **{"group": name, "revision": revision, **fields})
        self._apply(name, Record(service.SerializeToString()))

    def delete_service(self, name: str) -> None:
        self._apply(name, None)

    def _apply(self, name: str, after: Record | None) -> None:
        self.replica.apply_change(
            Change(
                revision=self.replica.revision + 1,
                type=EventType.EVENT_TYPE_SERVICE_UPDATED,
                reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
                at_ms=0,
                before=self.replica.records.get(name),
                after=after,
            )
        )

    async def summary(self, capability: str) -> CapabilitySummary:
        page, _ = await self.capabilities.page("", 1000)
        return next(summary for summary in page if summary.name == capability)


SERVICES = st.dictionaries(
    st.sampled_from("abcdef"),
    st.fixed_dictionaries(
        {
            "version": st.sampled_from(["1", "2", "3"]),
            "health": st.fixed_dictionaries({"status": st.integers(1, 5)}),
            "metadata": st.fixed_dictionaries({"tags": st.lists(st.sampled_from("xyz"), unique=True)}),
            "capabilities": st.lists(
                st.tuples(st.sampled_from(["read", "write"]), st.sampled_from("12")), unique=True
            ).map(lambda offered: [{"name": name, "version": version} for name, version in offered]),
        }
    ),
)


@given(SERVICES, st.sets(st.sampled_from("abcdef")))
def test_stats_equal_counts_over_all_services(services: dict[str, Any], removed: set[str]) -> None:
    catalog = Catalog()
    for name, fields in services.items():
        catalog.put_service(name, **fields)
    for name in removed & services.keys():
        catalog.delete_service(name)

    remaining = [fields for name, fields in services.items() if name not in removed]
    statuses = [fields["health"]["status"] for fields in remaining]
    offered = [capability["name"] for fields in remaining for capability in fields["capabilities"]]
    assert registry_stats(catalog.replica) == RegistryStats(
        total_services=len(remaining),
        healthy_services=statuses.count(HealthStatus.HEALTH_STATUS_HEALTHY),
        unhealthy_services=statuses.count(HealthStatus.HEALTH_STATUS_UNHEALTHY),
        degraded_services=statuses.count(HealthStatus.HEALTH_STATUS_DEGRADED),
        unknown_services=statuses.count(HealthStatus.HEALTH_STATUS_UNKNOWN),
        services_in_maintenance=statuses.count(HealthStatus.HEALTH_STATUS_MAINTENANCE),
        unique_capabilities=len(set(offered)),
        total_capabilities=len(offered),
        unique_versions=len({fields["version"] for fields in remaining}),
        unique_tags=len({tag for fields in remaining for tag in fields["metadata"]["tags"]}),
        average_capabilities_per_service=len(offered) / len(remaining) if remaining else 0.0,
    )


async def test_counts_are_kept_until_a_service_changes() -> None:
    catalog = Catalog()
    statistics = Statistics(catalog.replica, Discovery(catalog.replica))
    catalog.put_service("a", version="1")
    kept = await statistics.count(EVERYTHING)
    assert await statistics.count(EVERYTHING) is kept

    catalog.put_service("a", health={"status": HealthStatus.HEALTH_STATUS_UNHEALTHY})
    assert (await statistics.count(EVERYTHING)).unhealthy_services == 1
    catalog.replica.load_records([Record(small_service("b").SerializeToString())])
    assert await statistics.count(EVERYTHING) == registry_stats(catalog.replica)


async def test_summary_lists_versions_and_services_in_order() -> None:
    catalog = Catalog()
    catalog.put_service("c", **offering("read@2.0.0"))
    catalog.put_service("a", **offering("read@10.0.0", "read", "write"))
    catalog.put_service("b", **offering("read@2.0.0"))

    assert (await catalog.summary("read")) == CapabilitySummary(
        name="read", versions=["10.0.0", "2.0.0"], service_names=["a", "b", "c"], service_count=3
    )


async def test_description_is_that_of_the_first_service_with_one() -> None:
    catalog = Catalog()
    catalog.put_service("a", **offering("read@1"))
    catalog.put_service("c", **offering("read@1 of-c"))
    catalog.put_service("b", **offering("write@1 no", "read@1", "read@2 of-b"))

    assert (await catalog.summary("read")).description == "of-b"


async def test_pages_cover_all_capabilities_once() -> None:
    catalog = Catalog()
    catalog.put_service("a", **offering("e", "c", "a"))
    catalog.put_service("b", **offering("d", "b"))

    names, after, more = list[str](), "", True
    while more:
        page, more = await catalog.capabilities.page(after, 2)
        names += [summary.name for summary in page]
        after = names[-1]

    assert names == ["a", "b", "c", "d", "e"]
    assert await catalog.capabilities.page("e", 2) == ([], False)


@pytest.mark.parametrize("limit", [0, 30, 60, 10_000])
async def test_oversized_page_ends_early_and_the_next_one_continues(limit: int) -> None:
    catalog = Catalog(max_page_bytes=limit)
    catalog.put_service(
        "a", **offering(*(f"{name} {'d' * length}" for name, length in zip("abcde", (5, 9, 1, 50, 5), strict=True)))
    )

    pages, after, more = list[list[str]](), "", True
    while more:
        page, more = await catalog.capabilities.page(after, 100)
        assert sum(summary.ByteSize() for summary in page) <= limit or len(page) == 1
        pages.append([summary.name for summary in page])
        after = pages[-1][-1]

    assert [name for page in pages for name in page] == list("abcde")
    assert len(pages) == {0: 5, 30: 4, 60: 3, 10_000: 1}[limit]


async def test_full_last_page_reports_no_more_pages() -> None:
    catalog = Catalog()
    catalog.put_service("a", **offering("one", "two"))

    assert (await catalog.capabilities.page("", 2))[1] is False


async def test_summary_lists_limited_names_but_counts_all_services() -> None:
    catalog = Catalog(max_service_names=2)
    for name in "dbca":
        catalog.put_service(name, **offering("read@1"))

    summary = await catalog.summary("read")

    assert list(summary.service_names) == ["a", "b"]
    assert summary.service_count == 4


async def test_summaries_reflect_changes() -> None:
    catalog = Catalog()
    catalog.put_service("a", **offering("read@1 old"))
    assert (await catalog.summary("read")).description == "old"

    catalog.put_service("a", **offering("read@2 new", "write@1"))
    assert (await catalog.summary("read")) == CapabilitySummary(
        name="read", versions=["2"], service_names=["a"], service_count=1, description="new"
    )

    catalog.put_service("b", **offering("read@3"))
    assert list((await catalog.summary("read")).service_names) == ["a", "b"]

    catalog.delete_service("a")
    page, _ = await catalog.capabilities.page("", 10)
    assert [(each.name, list(each.versions)) for each in page] == [("read", ["3"])]


async def test_summary_is_cached_until_a_service_offering_it_changes() -> None:
    catalog = Catalog()
    catalog.put_service("a", **offering("read@1"))
    catalog.put_service("b", **offering("write@1"))
    kept = await catalog.summary("read")

    catalog.put_service("b", **offering("write@2"))

    assert (await catalog.summary("read")) is kept


async def test_summary_computed_in_slices_is_not_kept_if_a_service_changed_meanwhile() -> None:
    catalog = Catalog(slice_seconds=0)
    for name in "abc":
        catalog.put_service(name, **offering("read@1", "write@1"))
    pages = [asyncio.create_task(catalog.capabilities.page("", 10)) for _ in range(3)]
    for _ in range(4):
        await asyncio.sleep(0)
    catalog.delete_service("a")
    catalog.put_service("b", **offering("read@2"))
    await asyncio.gather(*pages)

    assert list((await catalog.summary("read")).service_names) == ["b", "c"]
    assert list((await catalog.summary("write")).service_names) == ["c"]
    assert catalog.capabilities._states.keys() == {"read", "write"}


async def test_summaries_of_many_services_leave_turns_to_other_tasks() -> None:
    catalog = Catalog(slice_seconds=0)
    for i in range(5):
        catalog.put_service(f"s{i}", **offering(*(f"c{j}" for j in range(10))))
    page = asyncio.create_task(catalog.capabilities.page("", 10))
    turns = 0
    while not page.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns > 10 * 5


async def test_known_summaries_of_hidden_services_leave_turns_to_other_tasks() -> None:
    catalog = Catalog(slice_seconds=0)
    catalog.put_service("hidden", **offering(*(f"c{i}" for i in range(50))))
    visible = Visibility(("other",), ()).join(EVERYTHING, None)
    assert await catalog.capabilities.page("", 10, visible) == ([], False)
    page = asyncio.create_task(catalog.capabilities.page("", 10, visible))
    turns = 0
    while not page.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns > 50
