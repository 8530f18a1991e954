import asyncio
from contextlib import suppress
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict

from ossa.registry.v1.event_pb2 import EventReason
from ossa.registry.v1.service_pb2 import Service
from tests.grpc.calls import (
    DEGRADED,
    HEALTH_CHANGED,
    HEALTHY,
    MAINTENANCE,
    UNHEALTHY,
    UNKNOWN,
    UPDATED,
    failure,
    get,
    health_of,
    kind_and_name,
    redis_client,
    register,
    report,
    set_remaining_lease,
    update,
    watching,
)
from tests.support.redis_process import RedisProcess
from tests.support.samples import example_service, small_service
from tests.support.server import Server


def full_service() -> Service:
    """Return a service with every field set that clients may set, except health."""
    service = example_service()
    service.group = "text"
    service.ttl.FromSeconds(60)
    service.metadata.description = "Text in, sentiment out"
    service.metadata.author = "Team Text"
    service.metadata.documentation = "https://docs.company.com/text"
    service.health_check.http.path = "/ready"
    service.health_check.http.headers["X-Probe"] = "1"
    service.health_check.interval.FromSeconds(10)
    service.health_check.failure_threshold = 5
    return service


def content(service: Service) -> Service:
    """Return a copy without the fields that change with every write."""
    plain = Service()
    plain.CopyFrom(service)
    plain.ClearField("updated_at")
    plain.ClearField("revision")
    return plain


class Masked(NamedTuple):
    """An update of ``full_service``, with fields as protobuf JSON."""

    paths: str
    sent: dict[str, Any]
    applied: dict[str, Any] = {}  # noqa: RUF012 - fields that the service has afterwards; never modified
    cleared: str = ""
    """Paths that are cleared before ``applied`` is merged."""


MASKED = {
    "one field": Masked("version", {"version": "9.0.0"}, {"version": "9.0.0"}),
    "only what the mask names": Masked(
        "version", {"version": "9.0.0", "group": "g", "metadata": {"tags": ["new"]}}, {"version": "9.0.0"}
    ),
    "several fields": Masked("version group", {"version": "9.0.0", "group": "g"}, {"version": "9.0.0", "group": "g"}),
    "a nested field": Masked(
        "metadata.environment", {"metadata": {"environment": "staging"}}, {"metadata": {"environment": "staging"}}
    ),
    "a list is replaced, not extended": Masked(
        "metadata.tags", {"metadata": {"tags": ["new"]}}, {"metadata": {"tags": ["new"]}}, "metadata.tags"
    ),
    "a map is replaced, not extended": Masked(
        "metadata.labels", {"metadata": {"labels": {"z": "b"}}}, {"metadata": {"labels": {"z": "b"}}}, "metadata.labels"
    ),
    "capabilities are replaced": Masked(
        "capabilities", {"capabilities": [{"name": "sum"}]}, {"capabilities": [{"name": "sum"}]}, "capabilities"
    ),
    "a message is replaced": Masked(
        "metadata", {"metadata": {"author": "B"}}, {"metadata": {"author": "B"}}, "metadata"
    ),
    "a message and a field of it": Masked(
        "metadata.author metadata", {"metadata": {"author": "B"}}, {"metadata": {"author": "B"}}, "metadata"
    ),
    "a field twice": Masked("version version", {"version": "9.0.0"}, {"version": "9.0.0"}),
    "the name, which is the same": Masked("name version", {"version": "9.0.0"}, {"version": "9.0.0"}),
    "another kind of probe": Masked("health_check.tcp", {"healthCheck": {"tcp": {}}}, {"healthCheck": {"tcp": {}}}),
    "a field of another kind of probe": Masked(
        "health_check.grpc.service",
        {"healthCheck": {"grpc": {"service": "s"}}},
        {"healthCheck": {"grpc": {"service": "s"}}},
    ),
    "a field of the probe": Masked(
        "health_check.http.path",
        {"healthCheck": {"http": {"path": "/live"}}},
        {"healthCheck": {"http": {"path": "/live"}}},
    ),
    "a duration": Masked("ttl", {"ttl": "61.5s"}, {"ttl": "61.5s"}, "ttl"),
    "clears a list": Masked("capabilities", {}, cleared="capabilities"),
    "clears a message": Masked("metadata", {}, cleared="metadata"),
    "clears a duration": Masked("ttl", {}, cleared="ttl"),
    "clears a group, which becomes the name": Masked("group", {}, {"group": "ai-text-processor"}),
    "clears nested fields that are sent empty": Masked(
        "metadata.tags metadata.author",
        {"metadata": {"description": "not in the mask"}},
        cleared="metadata.tags metadata.author",
    ),
    "clears nested fields of a message that is not sent": Masked(
        "metadata.author metadata.labels", {}, cleared="metadata.author metadata.labels"
    ),
    "clears a field of messages that are not sent": Masked(
        "health_check.http.headers", {}, cleared="health_check.http.headers"
    ),
    "clears a number of a message that is not sent": Masked(
        "health_check.failure_threshold", {}, cleared="health_check.failure_threshold"
    ),
    "clears a probe": Masked("health_check.http", {}, cleared="health_check.http"),
    "clears one field and sets another": Masked("metadata ttl", {"ttl": "61s"}, {"ttl": "61s"}, "metadata ttl"),
    "empty mask: set fields are applied": Masked(
        "",
        {"version": "9.0.0", "capabilities": [{"name": "sum"}]},
        {"version": "9.0.0", "capabilities": [{"name": "sum"}]},
        "capabilities",
    ),
    "empty mask: a message is replaced": Masked(
        "", {"metadata": {"tags": ["new"]}}, {"metadata": {"tags": ["new"]}}, "metadata"
    ),
    "empty mask: 0 s is set, and means permanent": Masked("", {"ttl": "0s"}, {"ttl": "0s"}, "ttl"),
    "* replaces everything and clears unset fields": Masked(
        "*",
        {"version": "9.0.0", "endpoint": "https://ai-service.company.com:8080"},
        {"version": "9.0.0", "group": "ai-text-processor"},
        "capabilities metadata health_check ttl",
    ),
}


def clear(message: Any, path: str) -> None:
    *around, field = path.split(".")
    for name in around:
        message = getattr(message, name)
    message.ClearField(field)


@pytest.mark.parametrize("case", MASKED)
async def test_only_fields_of_the_mask_change(server: Server, case: str) -> None:
    masked = MASKED[case]
    before = await register(server, full_service())
    expected = Service()
    expected.CopyFrom(before)
    for path in masked.cleared.split():
        clear(expected, path)
    ParseDict(masked.applied, expected)

    async with watching(server) as watch:
        sent = ParseDict(masked.sent, Service(name=before.name))
        after = await update(server, sent, *masked.paths.split())
        assert content(after) == content(expected)
        event = await watch.event()

    assert after.revision == before.revision + 1
    assert after.updated_at.ToNanoseconds() >= before.updated_at.ToNanoseconds()
    assert await get(server, before.name) == after
    assert (event.type, event.service, event.revision) == (UPDATED, after, after.revision)
    assert (event.reason, event.previous_health) == (EventReason.EVENT_REASON_CLIENT_REQUEST, UNKNOWN)


# Updates of the example service of the OSSA reference implementation: paths of the mask, and the sent fields.
UNCHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "no field and no path": ("", {}),
    "the current value": ("version", {"version": "2.1.0"}),
    "the current list": ("metadata.tags", {"metadata": {"tags": ["ai", "nlp"]}}),
    "clearing the group, which is the name": ("group", {}),
    "clearing an unset field": ("health_check ttl metadata.author", {}),
    "clearing a field of an unset message": ("health_check.interval health_check.http.path", {}),
    "clearing a number of an unset message": ("health_check.failure_threshold", {}),
    "the current status": ("", {"health": {"status": "HEALTH_STATUS_UNKNOWN"}}),
}


@pytest.mark.parametrize("case", UNCHANGED)
async def test_update_without_effect_has_no_revision_and_no_event(server: Server, case: str) -> None:
    paths, fields = UNCHANGED[case]
    before = await register(server, example_service())
    async with watching(server) as watch:
        assert await update(server, ParseDict(fields, Service(name=before.name)), *paths.split()) == before
        await register(server, small_service("next"))
        assert kind_and_name(await watch.event()) == ("REGISTERED", "next")
    assert await get(server, before.name) == before


@pytest.mark.parametrize("mask", ["", "*"])
async def test_read_service_can_be_sent_back_with_one_change(server: Server, mask: str) -> None:
    await register(server, full_service())
    await report(server, "ai-text-processor", DEGRADED, error="slow", details={"p99": 1.5})
    read = await get(server, "ai-text-processor")

    assert await update(server, read, *mask.split()) == read, "unchanged content is no change"
    edited = Service()
    edited.CopyFrom(read)
    edited.metadata.tags.append("new")
    after = await update(server, edited, *mask.split(), expected_revision=read.revision)
    assert content(after) == content(edited)
    assert after.health == read.health
    assert after.revision > read.revision


BAD_PATHS = [
    "nonsense",
    "Version",
    "registered_at",
    "registered_at.seconds",
    "updated_at",
    "revision",
    "health.status_changed_at",
    "metadata.nonsense",
    "metadata.labels.region",
    "capabilities.name",
    "capabilities[0]",
    "health.details.cpu",
    "version.major",
    "",
    " version",
    "metadata.",
    ".",
]


async def test_all_unknown_and_output_only_paths_are_reported(server: Server) -> None:
    before = await register(server, example_service())
    sent = example_service()
    sent.version = "9.0.0"
    for path in BAD_PATHS:
        refused = await failure(update(server, sent, "version", path))
        assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["update_mask.paths[1]"]), path
    refused = await failure(update(server, sent, *BAD_PATHS))
    assert refused.fields == [f"update_mask.paths[{i}]" for i in range(len(BAD_PATHS))]
    assert (await failure(update(server, sent, "*", "version"))).fields == ["update_mask.paths[0]"], (
        "`*` must be the only path"
    )
    assert await get(server, before.name) == before


@pytest.mark.parametrize(
    ("path", "field"),
    [("version", "service.version"), ("endpoint", "service.endpoint"), ("*", "service.endpoint")],
)
async def test_update_must_not_clear_required_fields(server: Server, path: str, field: str) -> None:
    before = await register(server, example_service())
    refused = await failure(update(server, Service(name=before.name), path))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert field in refused.fields
    assert await get(server, before.name) == before


async def test_update_must_result_in_a_valid_service(server: Server) -> None:
    await register(server, small_service("a"))
    sent = Service(name="a", endpoint="file://a", group="?")
    sent.metadata.tags.extend(["x", "x"])
    refused = await failure(update(server, sent))
    assert sorted(refused.fields) == ["service.endpoint", "service.group", "service.metadata.tags[1]"]


async def test_update_of_an_unknown_service_is_not_found(server: Server) -> None:
    refused = await failure(update(server, small_service("missing"), "version"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")
    assert refused.metadata == {"name": "missing"}
    refused = await failure(update(server, small_service("missing"), expected_revision=3))
    assert refused.code is grpc.StatusCode.NOT_FOUND


async def test_expected_revision_prevents_update_of_a_changed_service(server: Server) -> None:
    first = await register(server, small_service("a"))
    await register(server, small_service("other"))
    second = await update(server, small_service("a", version="2.0.0"), expected_revision=first.revision)
    assert second.version == "2.0.0"

    refused = await failure(update(server, small_service("a", version="3.0.0"), expected_revision=first.revision))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "REVISION_MISMATCH")
    assert refused.metadata == {
        "name": "a",
        "expectedRevision": str(first.revision),
        "actualRevision": str(second.revision),
    }
    assert await get(server, "a") == second

    refused = await failure(update(server, small_service("a", version="2.0.0"), expected_revision=first.revision))
    assert refused.code is grpc.StatusCode.ABORTED, "an update without effect is refused too"
    refused = await failure(update(server, small_service("a"), expected_revision=-1))
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["expected_revision"])


async def test_update_does_not_renew_the_lease(server: Server, redis: RedisProcess) -> None:
    await register(server, small_service("a"))
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "a", 100)
        before = (await health_of(server, "a")).lease_expires_at
        await update(server, small_service("a", version="2.0.0"))
        assert (await health_of(server, "a")).lease_expires_at == before
        assert 90 < await client.ttl("ossa:services:a") <= 100, "the expiry of the document does not change either"


async def test_update_of_ttl_starts_a_new_lease(server: Server, redis: RedisProcess) -> None:
    await register(server, small_service("a"))
    async with redis_client(redis) as client:
        await set_remaining_lease(client, "a", 100)
        await update(server, small_service("a", ttl=Duration(seconds=600)), "ttl")
        assert 590 < await client.ttl("ossa:services:a") <= 600
        await update(server, small_service("a", ttl=Duration()), "ttl")
        assert await client.ttl("ossa:services:a") == -1
        assert not (await health_of(server, "a")).HasField("lease_expires_at")
        await update(server, small_service("a"), "ttl")
        assert 290 < await client.ttl("ossa:services:a") <= 300


async def test_update_of_only_the_status_is_a_health_change(server: Server) -> None:
    before = await register(server, example_service())
    sent = Service(name=before.name)
    sent.health.status = MAINTENANCE
    async with watching(server) as watch:
        after = await update(server, sent, "health.status")
        event = await watch.event()
        sent.health.status = HEALTHY
        lifted = await update(server, sent)

    assert after.health.status == MAINTENANCE
    assert after.health.status_changed_at == after.updated_at
    assert (event.type, event.previous_health, event.service) == (HEALTH_CHANGED, UNKNOWN, after)
    assert event.reason == EventReason.EVENT_REASON_CLIENT_REQUEST
    assert lifted.health.status == HEALTHY, "an update lifts MAINTENANCE"
    assert (await health_of(server, before.name)).health == lifted.health


async def test_update_of_status_and_content_is_an_update_event(server: Server) -> None:
    before = await register(server, example_service())
    sent = Service(name=before.name, version="9.0.0")
    sent.health.status = UNHEALTHY
    async with watching(server) as watch:
        after = await update(server, sent)
        event = await watch.event()
    assert (event.type, event.previous_health, event.service) == (UPDATED, UNKNOWN, after)


async def test_update_of_health_without_the_status_is_no_health_change(server: Server) -> None:
    before = await register(server, small_service("a"))
    await report(server, "a", UNHEALTHY, error="no disk")
    await report(server, "a", UNHEALTHY, error="still no disk")
    known = await get(server, "a")
    sent = Service(name="a")
    sent.health.error = "disk is ordered"
    async with watching(server) as watch:
        after = await update(server, sent, "health.error")
        event = await watch.event()

    assert after.health.status == UNHEALTHY
    assert after.health.status_changed_at == known.health.status_changed_at
    assert after.registered_at == before.registered_at
    assert event.type == UPDATED, "HEALTH_CHANGED is for a status that changed"
    assert (await health_of(server, "a")).health.error == "disk is ordered", "the newest health is returned"


async def test_changed_endpoint_resets_the_health_to_unknown(server: Server) -> None:
    await register(server, small_service("a"))
    await report(server, "a", HEALTHY)
    moved = await update(server, small_service("a", endpoint="http://b.test:1"), "endpoint")
    assert moved.health.status == UNKNOWN
    assert (await health_of(server, "a")).health == moved.health


async def test_concurrent_updates_of_different_fields_are_all_applied(server: Server) -> None:
    sent = full_service()
    await register(server, small_service(sent.name, endpoint=sent.endpoint))
    paths = "version capabilities group ttl health_check metadata.description metadata.tags metadata.author"
    paths += " metadata.documentation metadata.environment metadata.labels"
    await asyncio.gather(*(update(server, sent, path) for path in paths.split()))
    after = await get(server, sent.name)
    for field in ("registered_at", "updated_at", "revision", "health"):
        after.ClearField(field)
    assert after == sent


async def test_expected_revision_makes_a_concurrent_counter_exact(server: Server) -> None:
    await register(server, small_service("a", version="0"))

    async def count() -> None:
        while True:
            read = await get(server, "a")
            edited = small_service("a", version=str(int(read.version) + 1))
            with suppress(grpc.aio.AioRpcError):  # a concurrent update was committed first
                await update(server, edited, "version", expected_revision=read.revision)
                return

    await asyncio.gather(*(count() for _ in range(15)))
    assert (await get(server, "a")).version == "15"
