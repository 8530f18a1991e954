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
    age_lease,
    failure,
    failure_in,
    get,
    health_of,
    laggard,
    redis_client,
    register,
    report,
    told,
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


async def lease_left(server: Server, redis: RedisProcess, name: str) -> float:
    """Seconds until the lease ends, by the clock of the store."""
    async with redis_client(redis) as client:
        seconds, microseconds = await client.time()
    ends = (await health_of(server, name)).lease_expires_at
    return ends.seconds + ends.nanos / 1e9 - seconds - microseconds / 1e6


async def test_a_new_service_gets_its_times_a_revision_a_group_and_unknown_health(server: Server) -> None:
    service = await register(server, small_service("a"))

    assert service.revision == 1
    assert service.registered_at.seconds
    assert service.registered_at == service.updated_at == service.health.status_changed_at
    assert service.group == "a"
    assert service.health.status == UNKNOWN
    assert await get(server, "a") == service


async def test_everything_that_a_client_may_set_is_kept(server: Server) -> None:
    sent = example_service()
    sent.group = "text"
    sent.ttl.FromSeconds(60)
    sent.health_check.http.path = "/ready"
    sent.health_check.http.headers["X-Probe"] = "1"
    sent.health_check.interval.FromSeconds(10)
    sent.metadata.author = "Zoë"
    kept = await register(server, sent)

    for field in ("registered_at", "updated_at", "revision", "health"):
        kept.ClearField(field)
    assert kept == sent


async def test_registering_again_keeps_registered_at_and_takes_the_new_content_as_a_whole(server: Server) -> None:
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


async def test_registering_identical_content_renews_the_lease_and_nothing_else(
    server: Server, redis: RedisProcess
) -> None:
    first = await register(server, example_service())
    async with watching(server) as watch, redis_client(redis) as client:
        await age_lease(client, first.name, 10)
        assert await lease_left(server, redis, first.name) <= 10
        second = await register(server, example_service())
        assert 290 < await lease_left(server, redis, first.name) <= 300
        assert 290 < await client.ttl(f"ossa:services:{first.name}") <= 300

        other = await register(server, small_service("other"))
        assert told(await watch.event()) == ("REGISTERED", "other"), "identical content emits nothing"

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

    assert await register(server, sent) == first, "they do not make the content another"


async def test_what_was_read_can_be_registered_as_it_is(server: Server) -> None:
    await register(server, example_service())
    await report(server, "ai-text-processor", DEGRADED, error="slow")
    read = await get(server, "ai-text-processor")
    assert await register(server, read) == read


async def test_create_only_refuses_a_name_that_is_taken_and_leaves_the_service_alone(server: Server) -> None:
    first = await register(server, small_service("a"), create_only=True)

    refused = await failure(register(server, small_service("a", version="2.0.0"), create_only=True))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert refused.reason == "SERVICE_EXISTS"
    assert refused.metadata == {"name": "a"}
    assert await get(server, "a") == first

    refused = await failure(register(server, small_service("a"), create_only=True))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS, "also with identical content"

    await unregister(server, "a")
    assert (await register(server, small_service("a"), create_only=True)).revision > first.revision


async def test_of_many_that_create_one_name_at_once_exactly_one_succeeds(server: Server) -> None:
    outcomes = await asyncio.gather(
        *(register(server, small_service("a", version=f"{i}.0.0"), create_only=True) for i in range(40)),
        return_exceptions=True,
    )
    created = [outcome for outcome in outcomes if isinstance(outcome, Service)]
    refused = [outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert refused == [grpc.StatusCode.ALREADY_EXISTS] * 39
    assert created == [await get(server, "a")]


@pytest.mark.parametrize("status", [HEALTHY, UNHEALTHY, DEGRADED, UNKNOWN, MAINTENANCE])
async def test_the_first_registration_may_say_how_the_service_is(
    server: Server, status: HealthStatus.ValueType
) -> None:
    sent = small_service("a", health=health(status, error="as told"))
    sent.health.details["load"] = 0.5
    sent.health.last_check.FromSeconds(1_700_000_000)
    service = await register(server, sent)
    service.health.ClearField("status_changed_at")
    assert service.health == sent.health


@pytest.mark.parametrize("again", [None, health(UNSPECIFIED), health(UNKNOWN)], ids=["unset", "unspecified", "unknown"])
async def test_registering_again_without_a_status_keeps_what_is_known(server: Server, again: Health | None) -> None:
    await register(server, small_service("a"))
    await report(server, "a", UNHEALTHY, error="no disk", details={"disk": "/var"})
    known = await get(server, "a")
    async with watching(server) as watch:
        service = await register(server, small_service("a", version="2.0.0", health=again))
        event = await watch.event()

    assert service.health == known.health
    assert service.version == "2.0.0"
    assert (event.type, event.previous_health) == (UPDATED, UNHEALTHY)


async def test_registering_again_with_another_status_takes_it(server: Server) -> None:
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
    assert (both.type, both.previous_health) == (UPDATED, DEGRADED), "content changed too"
    assert both.service == third


async def test_registering_again_with_the_status_it_has_is_identical_content(server: Server) -> None:
    sent = small_service("a", health=health(HEALTHY))
    first = await register(server, sent)
    sent.health.last_check.GetCurrentTime()  # an agent that stamps each registration tells nothing new
    assert await register(server, sent) == first


async def test_another_endpoint_makes_what_was_known_of_the_old_one_unknown(server: Server) -> None:
    await register(server, small_service("a"))
    await report(server, "a", HEALTHY, details={"of": "the old one"})
    moved = await register(server, small_service("a", endpoint="http://b.test:1"))
    assert moved.health.status == UNKNOWN
    assert not moved.health.HasField("details")
    assert moved.health.status_changed_at == moved.updated_at
    assert (await health_of(server, "a")).health == moved.health, "no check of the old endpoint is shown"


async def test_another_endpoint_with_a_status_has_that_status(server: Server) -> None:
    await register(server, small_service("a", health=health(UNHEALTHY)))
    moved = await register(server, small_service("a", endpoint="http://b.test:1", health=health(HEALTHY)))
    assert moved.health.status == HEALTHY


async def test_the_lease_lasts_as_ttl_says(server: Server, redis: RedisProcess) -> None:
    default = await register(server, small_service("default"))
    short = await register(server, small_service("short", ttl=Duration(seconds=5)))
    fine = await register(server, small_service("fine", ttl=Duration(seconds=7, nanos=500_000_000)))
    day = await register(server, small_service("day", ttl=Duration(seconds=86_400)))
    forever = await register(server, small_service("forever", ttl=Duration()))

    assert not default.HasField("ttl")
    assert [s.ttl.ToMilliseconds() for s in (short, fine, day, forever)] == [5_000, 7_500, 86_400_000, 0]
    assert 290 < await lease_left(server, redis, "default") <= 300
    assert 0 < await lease_left(server, redis, "short") <= 5
    assert 5 < await lease_left(server, redis, "fine") <= 7.5
    assert 86_390 < await lease_left(server, redis, "day") <= 86_400
    assert forever.HasField("ttl"), "0 s is not the same as unset"
    assert not (await health_of(server, "forever")).HasField("lease_expires_at")


async def test_a_registration_that_changes_ttl_begins_a_lease_of_the_new_length(
    server: Server, redis: RedisProcess
) -> None:
    await register(server, small_service("a", ttl=Duration(seconds=60)))
    await register(server, small_service("a", ttl=Duration()))
    assert not (await health_of(server, "a")).HasField("lease_expires_at")
    await register(server, small_service("a", ttl=Duration(seconds=60)))
    assert 50 < await lease_left(server, redis, "a") <= 60
    await register(server, small_service("a"))
    assert 290 < await lease_left(server, redis, "a") <= 300


async def test_every_bad_field_is_named_and_nothing_is_registered(server: Server) -> None:
    bad = Service(name="-a", endpoint="ftp://a.test", ttl=Duration(seconds=1))
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


async def test_an_error_with_very_many_bad_fields_arrives_with_its_details(server: Server) -> None:
    # Clients refuse more than 8 KiB of trailers; non-ASCII text takes three times its bytes in the status message.
    bad = small_service("名" * 100, version="版\n" * 64)
    for i in range(64):
        bad.capabilities.add(name="能力" * 30 + str(i), version="\n" * 129)
        bad.metadata.tags.append("標籤," + "籤" * 50 + str(i))
        bad.metadata.labels["鍵" * 60 + str(i)] = "x" * 257
    refused = await failure(register(server, bad))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(refused.fields) > 20


async def test_what_the_limits_allow_is_taken(server: Server) -> None:
    largest = small_service(
        "n" * 128,
        endpoint="http://n.test",
        capabilities=[Capability(name=f"c{i}") for i in range(64)],
        metadata=Metadata(tags=[f"t{i}" for i in range(64)], labels={f"l{i}": "v" for i in range(64)}),
    )
    for i, capability in enumerate(largest.capabilities):
        capability.description = "d" * 4096 if i < 15 else ""
    room = 65_536 - largest.ByteSize()
    largest.capabilities[63].description = "d" * (room - 4)
    largest.capabilities[63].description += "d" * (65_536 - largest.ByteSize())
    assert largest.ByteSize() == 65_536

    service = await register(server, largest)
    assert await get(server, "n" * 128) == service

    largest.capabilities[62].description = "one more"
    refused = await failure(register(server, largest))
    assert refused.fields == ["service"]


# Batches.


async def test_a_batch_answers_in_order_and_each_service_stands_alone(server: Server) -> None:
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

    nameless, misled = failure_in(results[1].status), failure_in(results[3].status)
    assert nameless.code is misled.code is grpc.StatusCode.INVALID_ARGUMENT
    assert sorted(nameless.fields) == ["services[1].endpoint", "services[1].name", "services[1].version"]
    assert sorted(misled.fields) == ["services[3].capabilities[0].name", "services[3].endpoint"]
    assert (await failure(get(server, "y"))).code is grpc.StatusCode.NOT_FOUND


async def test_a_name_twice_in_a_batch_is_registered_twice_in_order(server: Server) -> None:
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


async def test_a_batch_may_have_500_services(server: Server) -> None:
    services = [small_service(f"s{i:03}") for i in range(500)]
    results = (await server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=services))).results
    assert [result.service.name for result in results] == [service.name for service in services]
    assert sorted(result.service.revision for result in results) == list(range(1, 501))
    assert (await server.stub.GetStats(pb.GetStatsRequest())).stats.total_services == 500


@pytest.mark.parametrize("size", [0, 501])
async def test_a_batch_of_another_size_is_refused_as_a_whole(server: Server, size: int) -> None:
    services = [small_service(f"s{i}") for i in range(size)]
    refused = await failure(server.stub.BatchRegisterServices(pb.BatchRegisterServicesRequest(services=services)))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["services"])
    assert (await server.stub.GetStats(pb.GetStatsRequest())).stats.total_services == 0


# Many writers.


async def test_many_registrations_of_one_name_at_once_all_succeed_one_after_the_other(server: Server) -> None:
    async with watching(server) as watch:
        registered = await asyncio.gather(
            *(register(server, small_service("a", version=f"{i}.0.0")) for i in range(64))
        )
        events = await watch.events(64)

    by_revision = sorted(registered, key=lambda service: service.revision)
    assert [service.revision for service in by_revision] == list(range(1, 65))
    assert [event.service for event in events] == by_revision, "every change is told once, in order"
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


async def test_a_server_that_is_behind_decides_on_what_is_true(server: Server, redis: RedisProcess) -> None:
    async with running(redis.url) as other, laggard(redis) as cut_off:
        for _ in range(5):
            await cut_off()
            first = await register(server, small_service("a"), create_only=True)
            changed = small_service("a", version="2.0.0")
            second = await update(other, changed, "version", expected_revision=first.revision)
            assert second.registered_at == first.registered_at

            await cut_off()
            await unregister(server, "a")
            third = await register(other, small_service("a"), create_only=True)
            assert third.revision == second.revision + 2

            await cut_off()
            await register(server, small_service("a", version="3.0.0"))
            refused = await failure(unregister(other, "a", expected_revision=third.revision))
            assert refused.reason == "REVISION_MISMATCH"
            assert (await unregister(other, "a")).version == "3.0.0"
            assert (await failure(unregister(server, "a"))).code is grpc.StatusCode.NOT_FOUND


async def test_a_client_reads_its_own_registrations_while_many_write(server: Server) -> None:
    async def agent(i: int) -> None:
        for version in range(5):
            service = await register(server, small_service(f"agent-{i}", version=f"{version}.0.0"))
            assert await get(server, service.name) == service

    await asyncio.gather(*(agent(i) for i in range(30)))
