import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Capability, Health, HealthStatus, Metadata, Service
from tests.grpc.calls import (
    DEGRADED,
    HEALTH_CHANGED,
    HEALTHY,
    MAINTENANCE,
    REGISTERED,
    UNHEALTHY,
    UNKNOWN,
    UNSPECIFIED,
    UPDATED,
    disconnectable_followers,
    failure,
    failure_in,
    get,
    health_of,
    kind_and_name,
    redis_client,
    register,
    report,
    set_remaining_lease,
    unregister,
    update,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.support.server import Server, running

LONG_AGO = Timestamp(seconds=1)


def health(status: HealthStatus.ValueType, **fields: str) -> Health:
    return Health(status=status, **fields)  # type: ignore[arg-type]


async def remaining_lease(server: Server, redis: RedisProcess, name: str) -> float:
    """Return the seconds until the lease ends, by the clock of the store."""
    async with redis_client(redis) as client:
        seconds, microseconds = await client.time()
    ends = (await health_of(server, name)).lease_expires_at
    return ends.seconds + ends.nanos / 1e9 - seconds - microseconds / 1e6


async def test_new_service_has_times_revision_group_and_unknown_health(server: Server) -> None:
    service = await register(server, small_service("a"))

    assert service.revision == 1
    assert service.registered_at.seconds
    assert service.registered_at == service.updated_at == service.health.status_changed_at
    assert service.group == "a"
    assert service.health.status == UNKNOWN
    assert await get(server, "a") == service


async def test_all_fields_that_clients_may_set_are_stored(server: Server) -> None:
    sent = example_service()
    sent.group = "text"
    sent.ttl.FromSeconds(60)
    sent.health_check.http.path = "/ready"
    sent.health_check.http.headers["X-Probe"] = "1"
    sent.health_check.interval.FromSeconds(10)
    sent.metadata.author = "Zoë"
    stored = await register(server, sent)

    for field in ("registered_at", "updated_at", "revision", "health"):
        stored.ClearField(field)
    assert stored == sent


async def test_registering_again_replaces_all_content_but_registered_at(server: Server) -> None:
    first = await register(server, example_service())
    async with watching(server) as watch:
        second = await register(server, small_service(first.name, endpoint=first.endpoint, version="3.0.0"))
        event = await watch.event()

    assert second.registered_at == first.registered_at
    assert second.revision > first.revision
    assert second.version == "3.0.0"
    assert not second.capabilities
    assert not second.HasField("metadata")
    assert second.health.status_changed_at == first.health.status_changed_at
    assert await get(server, first.name) == second
    assert event.type == UPDATED
    assert event.service == second
    assert event.revision == second.revision
    assert event.reason == EventReason.EVENT_REASON_CLIENT_REQUEST
    assert event.previous_health == UNKNOWN


async def test_registering_identical_content_only_renews_the_lease(server: Server, redis: RedisProcess) -> None:
    first = await register(server, example_service())
    async with watching(server) as watch, redis_client(redis) as client:
        await set_remaining_lease(client, first.name, 10)
        assert await remaining_lease(server, redis, first.name) <= 10
        second = await register(server, example_service())
        assert 290 < await remaining_lease(server, redis, first.name) <= 300
        assert 290 < await client.ttl(f"ossa:services:{first.name}") <= 300

        other = await register(server, small_service("other"))
        assert kind_and_name(await watch.event()) == ("REGISTERED", "other"), "identical content emits nothing"

    assert second == first
    assert other.revision == first.revision + 1


async def test_output_only_fields_of_a_request_are_ignored(server: Server) -> None:
    sent = small_service("a", registered_at=LONG_AGO, updated_at=LONG_AGO, revision=77)
    sent.health.status_changed_at.CopyFrom(LONG_AGO)
    first = await register(server, sent)
    assert first.revision == 1
    assert first.registered_at.seconds > 1
    assert first.updated_at == first.registered_at
    assert first.health.status_changed_at == first.registered_at

    assert await register(server, sent) == first, "output-only fields are no change of content"


async def test_service_can_be_registered_as_it_was_read(server: Server) -> None:
    await register(server, example_service())
    await report(server, "ai-text-processor", DEGRADED, error="slow")
    read = await get(server, "ai-text-processor")
    assert await register(server, read) == read


async def test_create_only_refuses_an_existing_name_and_changes_nothing(server: Server) -> None:
    first = await register(server, small_service("a"), create_only=True)

    refused = await failure(register(server, small_service("a", version="2.0.0"), create_only=True))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert refused.reason == "SERVICE_EXISTS"
    assert refused.metadata == {"name": "a"}
    assert await get(server, "a") == first

    refused = await failure(register(server, small_service("a"), create_only=True))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS, "identical content is refused too"

    await unregister(server, "a")
    assert (await register(server, small_service("a"), create_only=True)).revision > first.revision


async def test_exactly_one_of_many_concurrent_creations_succeeds(server: Server) -> None:
    outcomes = await asyncio.gather(
        *(register(server, small_service("a", version=f"{i}.0.0"), create_only=True) for i in range(40)),
        return_exceptions=True,
    )
    created = [outcome for outcome in outcomes if isinstance(outcome, Service)]
    refused = [outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert refused == [grpc.StatusCode.ALREADY_EXISTS] * 39
    assert created == [await get(server, "a")]


@pytest.mark.parametrize("status", [HEALTHY, UNHEALTHY, DEGRADED, UNKNOWN, MAINTENANCE])
async def test_first_registration_may_set_the_health(server: Server, status: HealthStatus.ValueType) -> None:
    sent = small_service("a", health=health(status, error="as reported"))
    sent.health.details["load"] = 0.5
    sent.health.last_check.FromSeconds(1_700_000_000)
    service = await register(server, sent)
    service.health.ClearField("status_changed_at")
    assert service.health == sent.health


@pytest.mark.parametrize("again", [None, health(UNSPECIFIED), health(UNKNOWN)], ids=["unset", "unspecified", "unknown"])
async def test_registering_again_without_a_status_keeps_the_health(server: Server, again: Health | None) -> None:
    await register(server, small_service("a"))
    await report(server, "a", UNHEALTHY, error="no disk", details={"disk": "/var"})
    known = await get(server, "a")
    async with watching(server) as watch:
        service = await register(server, small_service("a", version="2.0.0", health=again))
        event = await watch.event()

    assert service.health == known.health
    assert service.version == "2.0.0"
    assert (event.type, event.previous_health) == (UPDATED, UNHEALTHY)


async def test_registering_again_with_another_status_changes_the_status(server: Server) -> None:
    first = await register(server, small_service("a", health=health(HEALTHY)))
    async with watching(server) as watch:
        second = await register(server, small_service("a", health=health(DEGRADED, error="slow")))
        event = await watch.event()
        third = await register(server, small_service("a", version="2.0.0", health=health(HEALTHY)))
        both = await watch.event()

    assert second.health.status == DEGRADED
    assert second.health.error == "slow"
    assert second.updated_at == second.health.status_changed_at
    assert second.registered_at == first.registered_at
    assert (event.type, event.previous_health) == (HEALTH_CHANGED, HEALTHY)
    assert event.service == second
    assert event.reason == EventReason.EVENT_REASON_CLIENT_REQUEST
    assert (both.type, both.previous_health) == (UPDATED, DEGRADED), "the content changed too"
    assert both.service == third


async def test_registering_again_with_the_same_status_is_identical_content(server: Server) -> None:
    sent = small_service("a", health=health(HEALTHY))
    first = await register(server, sent)
    sent.health.last_check.GetCurrentTime()  # a new check time alone is no change
    assert await register(server, sent) == first


async def test_changed_endpoint_resets_the_health_to_unknown(server: Server) -> None:
    await register(server, small_service("a"))
    await report(server, "a", HEALTHY, details={"of": "the old one"})
    moved = await register(server, small_service("a", endpoint="http://b.test:1"))
    assert moved.health.status == UNKNOWN
    assert not moved.health.HasField("details")
    assert moved.health.status_changed_at == moved.updated_at
    assert (await health_of(server, "a")).health == moved.health, "checks of the old endpoint are not shown"


async def test_changed_endpoint_with_a_status_has_that_status(server: Server) -> None:
    await register(server, small_service("a", health=health(UNHEALTHY)))
    moved = await register(server, small_service("a", endpoint="http://b.test:1", health=health(HEALTHY)))
    assert moved.health.status == HEALTHY


async def test_lease_has_the_length_of_the_ttl(server: Server, redis: RedisProcess) -> None:
    default = await register(server, small_service("default"))
    short = await register(server, small_service("short", ttl=Duration(seconds=5)))
    fine = await register(server, small_service("fine", ttl=Duration(seconds=7, nanos=500_000_000)))
    day = await register(server, small_service("day", ttl=Duration(seconds=86_400)))
    permanent = await register(server, small_service("permanent", ttl=Duration()))

    assert not default.HasField("ttl")
    assert [s.ttl.ToMilliseconds() for s in (short, fine, day, permanent)] == [5_000, 7_500, 86_400_000, 0]
    assert 290 < await remaining_lease(server, redis, "default") <= 300
    assert 0 < await remaining_lease(server, redis, "short") <= 5
    assert 5 < await remaining_lease(server, redis, "fine") <= 7.5
    assert 86_390 < await remaining_lease(server, redis, "day") <= 86_400
    assert permanent.HasField("ttl"), "0 s is not the same as unset"
    assert not (await health_of(server, "permanent")).HasField("lease_expires_at")


async def test_changed_ttl_starts_a_lease_of_the_new_length(server: Server, redis: RedisProcess) -> None:
    await register(server, small_service("a", ttl=Duration(seconds=60)))
    await register(server, small_service("a", ttl=Duration()))
    assert not (await health_of(server, "a")).HasField("lease_expires_at")
    await register(server, small_service("a", ttl=Duration(seconds=60)))
    assert 50 < await remaining_lease(server, redis, "a") <= 60
    await register(server, small_service("a"))
    assert 290 < await remaining_lease(server, redis, "a") <= 300


async def test_all_bad_fields_are_reported_and_nothing_is_registered(server: Server) -> None:
    bad = Service(name="-a", endpoint="file://a.test", ttl=Duration(seconds=1))
    bad.capabilities.add(name="ok")
    bad.capabilities.add(name="not ok")
    bad.metadata.tags.append("one,two")
    refused = await failure(register(server, bad))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "INVALID_REQUEST"
    assert sorted(refused.fields) == [
        "service.capabilities[1].name",
        "service.endpoint",
        "service.metadata.tags[0]",
        "service.name",
        "service.ttl",
        "service.version",
    ]
    assert (await server.stub.GetStats(pb.GetStatsRequest())).stats.total_services == 0


async def test_error_with_very_many_bad_fields_keeps_its_details(server: Server) -> None:
    # Clients refuse more than 8 KiB of trailers; non-ASCII text takes three times its bytes in the status message.
    bad = small_service("名" * 100, version="版\n" * 64)
    for i in range(64):
        bad.capabilities.add(name="能力" * 30 + str(i), version="\n" * 129)
        bad.metadata.tags.append("標籤," + "籤" * 50 + str(i))
        bad.metadata.labels["鍵" * 60 + str(i)] = "x" * 257
    refused = await failure(register(server, bad))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(refused.fields) > 20


async def test_service_at_the_size_limits_is_accepted(server: Server) -> None:
    largest = small_service(
        "n" * 128,
        endpoint="http://n.test",
        capabilities=[Capability(name=f"c{i}") for i in range(256)],
        metadata=Metadata(tags=[f"t{i}" for i in range(64)], labels={f"l{i}": "v" for i in range(64)}),
    )
    for i, capability in enumerate(largest.capabilities):
        capability.description = "d" * 4096 if i < 31 else ""
    available = 131_072 - largest.ByteSize()
    largest.capabilities[255].description = "d" * (available - 4)
    largest.capabilities[255].description += "d" * (131_072 - largest.ByteSize())
    assert largest.ByteSize() == 131_072

    service = await register(server, largest)
    assert await get(server, "n" * 128) == service

    largest.capabilities[254].description = "one more"
    refused = await failure(register(server, largest))
    assert refused.fields == ["service"]


# Batches.


async def test_batch_results_are_in_order_and_independent(server: Server) -> None:
    await register(server, small_service("b"))
    request = pb.BatchRegisterServicesRequest(
        services=[
            small_service("z"),
            small_service("", version=""),
            small_service("b", version="2.0.0"),
            small_service("y", endpoint="nowhere", capabilities=[Capability(name="?")]),
            small_service("a"),
        ]
    )
    results = (await server.stub.BatchRegisterServices(request)).results

    assert [result.WhichOneof("result") for result in results] == ["service", "status", "service", "status", "service"]
    assert [result.service.name for result in results] == ["z", "", "b", "", "a"]
    assert results[2].service.version == "2.0.0"
    for result in (results[0], results[2], results[4]):
        assert await get(server, result.service.name) == result.service

    without_name, bad_endpoint = failure_in(results[1].status), failure_in(results[3].status)
    assert without_name.code is bad_endpoint.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(without_name.fields) == ["services[1].endpoint", "services[1].name", "services[1].version"]
    assert sorted(bad_endpoint.fields) == ["services[3].capabilities[0].name", "services[3].endpoint"]
    assert (await failure(get(server, "y"))).code is grpc.StatusCode.NOT_FOUND


async def test_repeated_name_in_a_batch_is_registered_in_order(server: Server) -> None:
    versions = [f"{i}.0.0" for i in range(30)]
    request = pb.BatchRegisterServicesRequest(services=[small_service("a", version=version) for version in versions])
    async with watching(server) as watch:
        results = (await server.stub.BatchRegisterServices(request)).results
        events = await watch.events(30)

    assert [result.service.version for result in results] == versions
    assert [result.service.revision for result in results] == list(range(1, 31))
    assert [event.service for event in events] == [result.service for result in results]
    assert [event.type for event in events] == [REGISTERED] + [UPDATED] * 29
    assert await get(server, "a") == results[-1].service


async def test_batch_may_contain_500_services(server: Server) -> None:
    services = [small_service(f"s{i:03}") for i in range(500)]
    results = (await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=services))).results
    assert [result.service.name for result in results] == [service.name for service in services]
    assert sorted(result.service.revision for result in results) == list(range(1, 501))
    assert (await server.stub.GetStats(pb.GetStatsRequest())).stats.total_services == 500


@pytest.mark.parametrize("size", [0, 501])
async def test_empty_or_too_large_batch_is_refused(server: Server, size: int) -> None:
    services = [small_service(f"s{i}") for i in range(size)]
    refused = await failure(server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=services)))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["services"])
    assert (await server.stub.GetStats(pb.GetStatsRequest())).stats.total_services == 0


# Concurrent writers.


async def test_concurrent_registrations_of_one_name_all_succeed_in_sequence(server: Server) -> None:
    async with watching(server) as watch:
        registered = await asyncio.gather(
            *(register(server, small_service("a", version=f"{i}.0.0")) for i in range(64))
        )
        events = await watch.events(64)

    by_revision = sorted(registered, key=lambda service: service.revision)
    assert [service.revision for service in by_revision] == list(range(1, 65))
    assert [event.service for event in events] == by_revision, "every change is emitted once, in order"
    assert [event.type for event in events] == [REGISTERED] + [UPDATED] * 63
    assert len({service.registered_at.ToNanoseconds() for service in registered}) == 1
    assert await get(server, "a") == by_revision[-1]


async def test_registrations_of_one_name_through_two_servers_all_succeed(server: Server, redis: RedisProcess) -> None:
    async with running(redis.url) as other, watching(server) as here, watching(other) as there:
        registered = await asyncio.gather(
            *(register((server, other)[i % 2], small_service("a", version=f"{i}.0.0")) for i in range(40))
        )
        by_revision = sorted(registered, key=lambda service: service.revision)
        assert [service.revision for service in by_revision] == list(range(1, 41))
        assert [event.service for event in await here.events(40)] == by_revision
        assert [event.service for event in await there.events(40)] == by_revision
        assert await get(other, "a", min_revision=40) == await get(server, "a", min_revision=40) == by_revision[-1]


async def test_server_that_is_behind_decides_on_the_current_state(server: Server, redis: RedisProcess) -> None:
    async with running(redis.url) as other, disconnectable_followers(redis) as disconnect_followers:
        for _ in range(5):
            await disconnect_followers()
            first = await register(server, small_service("a"), create_only=True)
            changed = small_service("a", version="2.0.0")
            second = await update(other, changed, "version", expected_revision=first.revision)
            assert second.registered_at == first.registered_at

            await disconnect_followers()
            await unregister(server, "a")
            third = await register(other, small_service("a"), create_only=True)
            assert third.revision == second.revision + 2

            await disconnect_followers()
            await register(server, small_service("a", version="3.0.0"))
            refused = await failure(unregister(other, "a", expected_revision=third.revision))
            assert refused.reason == "REVISION_MISMATCH"
            assert (await unregister(other, "a")).version == "3.0.0"
            assert (await failure(unregister(server, "a"))).code is grpc.StatusCode.NOT_FOUND


async def test_client_reads_its_own_writes_during_concurrent_writes(server: Server) -> None:
    async def agent(i: int) -> None:
        for version in range(5):
            service = await register(server, small_service(f"agent-{i}", version=f"{version}.0.0"))
            assert await get(server, service.name) == service

    await asyncio.gather(*(agent(i) for i in range(30)))
