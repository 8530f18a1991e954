import asyncio

import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import Capability, Health, Metadata, Service
from tests.grpc.calls import (
    DEGRADED,
    HEALTHY,
    MAINTENANCE,
    UNHEALTHY,
    UNKNOWN,
    discover,
    failure,
    register,
    register_all,
    report,
    unregister,
    update,
)
from tests.support.samples import example_service, small_service
from tests.support.server import Server


async def capabilities(server: Server, **fields: int | str) -> pb.ListCapabilitiesResponse:
    return await server.stub.ListCapabilities(pb.ListCapabilitiesRequest(**fields))  # type: ignore[arg-type]


async def stats(server: Server) -> pb.RegistryStats:
    return (await server.stub.GetStats(pb.GetStatsRequest())).stats


def offering(name: str, *offered: tuple[str, str] | tuple[str, str, str]) -> Service:
    """Return a service with capabilities of these names, versions and descriptions."""
    offers = [Capability(name=each[0], version=each[1], description="".join(each[2:])) for each in offered]
    return small_service(name, capabilities=offers)


# Capabilities.


async def test_capabilities_are_summarized_over_services_in_order(server: Server) -> None:
    await register_all(
        server,
        [
            offering("c", ("sum", "10.0.0"), ("sum", "9.0.0"), ("vision", "1.0.0", "Sees")),
            offering("a", ("translate", ""), ("sum", "9.0.0")),
            offering("b", ("sum", "9.0.0", "Adds up"), ("Zoom", "1.0.0")),
            offering("d", ("sum", "9.0.0", "Adds up as well")),
        ],
    )
    answer = await capabilities(server)
    assert list(answer.capabilities) == [
        pb.CapabilitySummary(name="Zoom", versions=["1.0.0"], service_names=["b"], service_count=1),
        pb.CapabilitySummary(
            name="sum",
            versions=["10.0.0", "9.0.0"],
            service_names=["a", "b", "c", "d"],
            service_count=4,
            description="Adds up",
        ),
        pb.CapabilitySummary(name="translate", service_names=["a"], service_count=1),
        pb.CapabilitySummary(
            name="vision", versions=["1.0.0"], service_names=["c"], service_count=1, description="Sees"
        ),
    ]
    assert not answer.next_page_token


async def test_capabilities_reflect_every_change_immediately(server: Server) -> None:
    async def shown() -> dict[str, tuple[list[str], list[str], str]]:
        answer = await capabilities(server)
        for summary in answer.capabilities:
            assert summary.service_count == len(summary.service_names)
        return {s.name: (list(s.versions), list(s.service_names), s.description) for s in answer.capabilities}

    assert await shown() == {}
    await register(server, offering("b", ("sum", "1", "Adds")))
    assert await shown() == {"sum": (["1"], ["b"], "Adds")}
    await register(server, offering("a", ("sum", "2"), ("vision", "")))
    assert await shown() == {"sum": (["1", "2"], ["a", "b"], "Adds"), "vision": ([], ["a"], "")}
    await update(server, offering("a", ("sum", "2", "Adds up")), "capabilities")
    assert await shown() == {"sum": (["1", "2"], ["a", "b"], "Adds up")}
    await report(server, "a", UNHEALTHY)
    assert await shown() == {"sum": (["1", "2"], ["a", "b"], "Adds up")}
    await unregister(server, "b")
    assert await shown() == {"sum": (["2"], ["a"], "Adds up")}
    await update(server, Service(name="a"), "capabilities")
    assert await shown() == {}


@pytest.mark.parametrize(
    ("page_size", "lengths"), [(0, [100, 100, 51]), (1, [1] * 251), (100, [100, 100, 51]), (1000, [251]), (9999, [251])]
)
async def test_capabilities_are_returned_in_pages(server: Server, page_size: int, lengths: list[int]) -> None:
    expected = [f"c{i:03}" for i in range(251)]
    await register_all(
        server, (offering(f"s{i}", *((name, "1.0.0") for name in expected[50 * i : 50 * i + 51])) for i in range(5))
    )
    pages: list[list[str]] = []
    token = ""
    while True:
        page = await capabilities(server, page_size=page_size, page_token=token)
        pages.append([summary.name for summary in page.capabilities])
        token = page.next_page_token
        if not token:
            break
    assert [len(page) for page in pages] == lengths
    assert [name for page in pages for name in page] == expected


async def test_page_of_capabilities_has_at_most_1000_entries(server: Server) -> None:
    await register_all(server, (offering(f"s{i}", *((f"c{i}-{j}", "1") for j in range(64))) for i in range(16)))
    page = await capabilities(server, page_size=2**31 - 1)
    assert len(page.capabilities) == 1000
    rest = await capabilities(server, page_size=2**31 - 1, page_token=page.next_page_token)
    assert len(rest.capabilities) == 24
    assert not rest.next_page_token


async def test_capability_summary_names_the_first_1000_services(server: Server) -> None:
    await register_all(server, (offering(f"s{i:04}", ("sum", "1")) for i in reversed(range(1_100))))
    (summary,) = (await capabilities(server)).capabilities
    assert summary.service_count == 1_100
    assert list(summary.service_names) == [f"s{i:04}" for i in range(1_000)]
    await unregister(server, "s0007")
    (summary,) = (await capabilities(server)).capabilities
    assert summary.service_count == 1_099
    assert summary.service_names[7] == "s0008"
    assert summary.service_names[-1] == "s1000"


async def test_invalid_page_sizes_and_tokens_are_refused(server: Server) -> None:
    await register(server, example_service())
    await register(server, small_service("other"))
    service_token = (await discover(server, page_size=1)).next_page_token
    for fields, bad in (
        ({"page_size": -1}, ["page_size"]),
        ({"page_token": "?"}, ["page_token"]),
        ({"page_token": service_token}, ["page_token"]),
        ({"page_size": -1, "page_token": "?"}, ["page_size", "page_token"]),
    ):
        refused = await failure(capabilities(server, **fields))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, bad)


# Stats.


async def test_stats_of_an_empty_registry_are_zero(server: Server) -> None:
    assert await stats(server) == pb.RegistryStats()


async def test_stats_count_services_capabilities_versions_and_tags(server: Server) -> None:
    statuses = [HEALTHY] * 5 + [UNHEALTHY] * 4 + [DEGRADED] * 3 + [UNKNOWN] * 2 + [MAINTENANCE]
    await register_all(
        server,
        (
            small_service(
                f"s{i}",
                version=f"{i % 4}.0.0",
                health=Health(status=status),
                metadata=Metadata(tags=[f"t{i % 3}", "all"]),
                capabilities=[Capability(name="sum", version=f"{j}") for j in range(i % 3)],
            )
            for i, status in enumerate(statuses)
        ),
    )
    await register(server, example_service())
    assert await stats(server) == pb.RegistryStats(
        total_services=16,
        healthy_services=5,
        unhealthy_services=4,
        degraded_services=3,
        unknown_services=3,
        services_in_maintenance=1,
        unique_capabilities=3,
        total_capabilities=15 + 2,
        unique_versions=5,
        unique_tags=6,
        average_capabilities_per_service=17 / 16,
    )


async def test_stats_are_correct_after_concurrent_writes(server: Server) -> None:
    async def agent(i: int) -> None:
        name = f"agent-{i}"
        await register(server, offering(name, ("sum", "1"), (f"own-{i}", "1")))
        await report(server, name, HEALTHY)
        await update(server, offering(name, ("sum", "2")), "capabilities")
        if i % 2:
            await unregister(server, name)

    await asyncio.gather(*(agent(i) for i in range(40)))
    assert await stats(server) == pb.RegistryStats(
        total_services=20,
        healthy_services=20,
        unique_capabilities=1,
        total_capabilities=20,
        unique_versions=1,
        average_capabilities_per_service=1,
    )
