import asyncio

import grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Service, ServiceFilter
from tests.grpc.calls import (
    HEALTHY,
    UNKNOWN,
    UNREGISTERED,
    failure,
    find_names,
    get,
    health_of,
    heartbeat,
    kind_and_name,
    redis_client,
    register,
    report,
    unregister,
    update,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.support.server import Server


async def test_last_state_is_returned_and_emitted(server: Server) -> None:
    await register(server, example_service())
    await report(server, "ai-text-processor", HEALTHY, details={"load": 0.5})
    last = await get(server, "ai-text-processor")
    async with watching(server) as watch:
        assert await unregister(server, last.name) == last
        event = await watch.event()

    assert (event.type, event.service, event.previous_health) == (UNREGISTERED, last, HEALTHY)
    assert event.reason == EventReason.EVENT_REASON_CLIENT_REQUEST
    assert event.revision == last.revision + 1
    assert event.occurred_at.seconds >= last.updated_at.seconds


async def test_no_data_of_the_service_remains(server: Server, redis: RedisProcess) -> None:
    remaining = await register(server, small_service("stay"))
    last = await register(server, example_service())
    await report(server, last.name, UNKNOWN, details={"checked": True})
    assert await find_names(server, ServiceFilter(capability="translate")) == [last.name]
    await unregister(server, last.name)

    for call in (get(server, last.name), health_of(server, last.name), report(server, last.name, HEALTHY)):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")
    assert await find_names(server, ServiceFilter(capability="translate")) == []
    assert await find_names(server, ServiceFilter()) == ["stay"]
    assert (await heartbeat(server, last.name)).unknown_names == [last.name]
    assert not (await server.stub.ListCapabilities(pb.ListCapabilitiesRequest())).capabilities
    assert (await server.stub.GetStats(pb.GetStatsRequest())).stats.total_services == 1
    async with redis_client(redis) as client:
        assert not await client.exists(f"ossa:services:{last.name}")
        for key in ("records", "ttls", "checks"):
            assert not await client.hexists(f"ossa:registry:{key}", last.name), key
        assert await client.zscore("ossa:registry:leases", last.name) is None
        assert await client.exists("ossa:services:stay")
    assert await get(server, "stay") == remaining


async def test_unknown_service_is_not_found(server: Server) -> None:
    await register(server, small_service("a"))
    await unregister(server, "a")
    for call in (unregister(server, "a"), unregister(server, "b"), unregister(server, "a", expected_revision=1)):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")
        assert refused.metadata["name"] in {"a", "b"}


async def test_expected_revision_prevents_removal_of_a_changed_service(server: Server) -> None:
    first = await register(server, small_service("a"))
    second = await update(server, small_service("a", version="2.0.0"))

    refused = await failure(unregister(server, "a", expected_revision=first.revision))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "REVISION_MISMATCH")
    assert refused.metadata == {"name": "a", "expectedRevision": "1", "actualRevision": "2"}
    assert await get(server, "a") == second

    assert await unregister(server, "a", expected_revision=second.revision) == second


async def test_bad_fields_are_reported(server: Server) -> None:
    refused = await failure(unregister(server, "-", expected_revision=-1))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["name", "expected_revision"])


async def test_service_registered_again_starts_without_its_former_state(server: Server) -> None:
    first = await register(server, example_service())
    await report(server, first.name, HEALTHY)
    last = await unregister(server, first.name)
    async with watching(server) as watch:
        second = await register(server, example_service())
        assert kind_and_name(await watch.event()) == ("REGISTERED", first.name)

    assert second.health.status == UNKNOWN
    assert second.revision == last.revision + 2
    assert second.registered_at == second.updated_at
    assert second.registered_at.ToNanoseconds() >= last.updated_at.ToNanoseconds()


async def test_exactly_one_of_many_concurrent_unregistrations_succeeds(server: Server) -> None:
    service = await register(server, small_service("a"))
    async with watching(server) as watch:
        outcomes = await asyncio.gather(*(unregister(server, "a") for _ in range(30)), return_exceptions=True)
        await register(server, small_service("next"))
        assert [kind_and_name(event) for event in await watch.events(2)] == [
            ("UNREGISTERED", "a"),
            ("REGISTERED", "next"),
        ]

    assert [outcome for outcome in outcomes if isinstance(outcome, Service)] == [service]
    refused = [outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert refused == [grpc.StatusCode.NOT_FOUND] * 29


async def test_last_event_matches_the_state_after_concurrent_changes(server: Server) -> None:
    await register(server, small_service("a"))
    async with watching(server) as watch:
        writes = [register(server, small_service("a", version=f"{i}.0.0")) for i in range(20)]
        removals = [unregister(server, "a") for _ in range(20)]
        calls = [call for pair in zip(writes, removals, strict=True) for call in pair]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        done = [outcome for outcome in outcomes if isinstance(outcome, Service)]
        refused = [outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert len(done) + len(refused) == 40
        assert set(refused) <= {grpc.StatusCode.NOT_FOUND}
        events = await watch.events(len(done))

    registered = True
    for event in events:
        assert kind_and_name(event)[0] in ({"UPDATED", "UNREGISTERED"} if registered else {"REGISTERED"})
        registered = event.type != UNREGISTERED
    assert await find_names(server, ServiceFilter()) == (["a"] if registered else [])
