"""Every RPC as a method of ``RegistryClient``, against a real registry."""

import asyncio
import re

import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import (
    HealthStatus,
    InvalidRequest,
    ProbingDisabled,
    RegistryClient,
    RegistryUnavailable,
    RevisionMismatch,
    Service,
    ServiceExists,
    ServiceFilter,
    ServiceNotFound,
    make_service,
)
from registry_client.errors import DeadlineExceeded
from registry_client.testing import RegistryProcess

UNREACHABLE = "127.0.0.1:1"


def agent(name: str = "agent", version: str = "1.0.0") -> Service:
    return make_service(name, f"http://{name}.test", version=version, capabilities=["summarize@1.2.0"], tags=["ai"])


def test_every_rpc_has_a_method() -> None:
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["RegistryService"].methods}
    streams = {"KeepAlive": "registration", "WatchEvents": "watch"}
    names = [streams.get(name) or re.sub("(?<!^)([A-Z])", r"_\1", name).lower() for name in sorted(methods)]
    assert [name for name in names if not callable(getattr(RegistryClient, name, None))] == []


async def test_lifecycle_of_a_service(client: RegistryClient) -> None:
    registered = await client.register_service(agent())
    assert registered.revision == client.revision
    assert await client.get_service("agent") == registered

    updated = await client.update_service(
        Service(name="agent", version="1.1.0"), ["version"], expected_revision=registered.revision
    )
    assert (updated.version, updated.endpoint) == ("1.1.0", registered.endpoint)

    await client.report_service_health("agent", "degraded", error="slow", details={"queue": 7})
    health, lease_ends = await client.get_service_health("agent")
    assert health.status == HealthStatus.HEALTH_STATUS_DEGRADED
    assert health.details["queue"] == 7
    assert lease_ends is not None

    heartbeat = await client.heartbeat(["agent", "missing"])
    assert (heartbeat.renewed_count, list(heartbeat.unknown_names)) == (1, ["missing"])

    last = await client.unregister_service("agent")
    assert last.name == "agent"
    assert (await client.get_stats()).total_services == 0
    assert await client.cleanup() == []


async def test_details_that_cannot_be_represented_are_refused(client: RegistryClient) -> None:
    await client.register_service(agent())
    details = {"offsets": (1, 2**63 - 1), "ratio": float("nan")}
    with pytest.raises(ValueError, match=r"details\.offsets\[1\]: would become .*; details\.ratio: must be a finite"):
        await client.report_service_health("agent", "degraded", details=details)


async def test_batch_returns_one_result_for_each_service(client: RegistryClient) -> None:
    good, bad = await client.batch_register_services([agent("good"), Service(name="no spaces")])
    assert isinstance(good, Service)
    assert isinstance(bad, InvalidRequest)
    assert {violation.field for violation in bad.violations} >= {"services[1].name", "services[1].endpoint"}


async def test_services_are_found_by_keyword_arguments_and_by_filter(client: RegistryClient) -> None:
    await client.batch_register_services([agent("one"), agent("two", version="2.0.0")])
    await client.report_service_health("two", HealthStatus.HEALTH_STATUS_HEALTHY)

    found = await client.discover_services(capability="summarize", health=["healthy", "degraded"], consistency="strong")
    assert [service.name for service in found.services] == ["two"]
    by_filter = await client.find_services(ServiceFilter(version="^1"), tags=["ai"], tag_match="all")
    assert [service.name for service in by_filter] == ["one"]
    (capability,) = await client.list_capabilities()
    assert (capability.name, capability.service_count) == ("summarize", 2)


async def test_find_services_returns_all_pages(client: RegistryClient) -> None:
    for start in range(0, 1_500, 500):
        await client.batch_register_services(agent(f"agent-{i:04d}") for i in range(start, start + 500))
    assert [each.name for each in await client.find_services()] == [f"agent-{i:04d}" for i in range(1_500)]
    assert len((await client.discover_services()).services) == 100


async def test_errors_have_their_class_and_metadata(client: RegistryClient) -> None:
    with pytest.raises(ServiceNotFound) as not_found:
        await client.get_service("missing")
    assert not_found.value.reason == "SERVICE_NOT_FOUND"
    assert not_found.value.metadata == {"name": "missing"}

    registered = await client.register_service(agent())
    with pytest.raises(ServiceExists):
        await client.register_service(agent(), create_only=True)
    with pytest.raises(RevisionMismatch) as mismatch:
        await client.unregister_service("agent", expected_revision=registered.revision + 1)
    assert mismatch.value.actual_revision == registered.revision
    with pytest.raises(InvalidRequest) as invalid:
        await client.discover_services(name_pattern="(", page_size=-1)
    assert {violation.field for violation in invalid.value.violations} == {"filter.name_pattern", "page_size"}
    with pytest.raises(ProbingDisabled):
        await client.check_service_health("agent")
    with pytest.raises(DeadlineExceeded):
        await client.get_service("agent", min_revision=1 << 40, timeout=0.3)


async def test_unreachable_registry_raises_within_the_deadline() -> None:
    async with RegistryClient(UNREACHABLE, timeout=0.3) as client:
        with pytest.raises((RegistryUnavailable, DeadlineExceeded)):
            await client.get_stats()


async def test_call_is_retried_until_the_registry_is_back(registry: RegistryProcess, client: RegistryClient) -> None:
    await client.register_service(agent())
    registry.kill()
    call = asyncio.create_task(client.get_service("agent"))
    await asyncio.to_thread(registry.start)
    assert (await call).name == "agent"


async def test_unsafe_calls_are_not_retried(registry: RegistryProcess) -> None:
    async with RegistryClient(registry.target, timeout=30) as client:
        await client.get_stats()
        registry.kill()
        async with asyncio.timeout(20):
            with pytest.raises(RegistryUnavailable):
                await client.register_service(agent(), create_only=True)
            with pytest.raises(RegistryUnavailable):
                await client.unregister_service("agent", expected_revision=3)


async def test_next_target_is_used_when_one_fails(registry: RegistryProcess) -> None:
    async with RegistryClient([UNREACHABLE, registry.target], timeout=30) as client:
        assert (await client.register_service(agent())).name == "agent"
        assert client.target == registry.target


async def test_calls_of_a_closed_client_raise_runtime_error(registry: RegistryProcess) -> None:
    client = RegistryClient(registry.target)
    await client.get_stats()
    await client.close()
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get_stats()


@pytest.mark.parametrize("targets", [[], [""], ""])
def test_client_needs_a_target(targets: list[str] | str) -> None:
    with pytest.raises(ValueError, match="target"):
        RegistryClient(targets)
