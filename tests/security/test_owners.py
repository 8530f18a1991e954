"""Ownership of services across processes and restarts, until a service is removed."""

import asyncio
import random
from typing import Any

import aiohttp
import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.errors import LimitExceeded, PermissionDenied
from registry_server.security.identity import Claim
from registry_server.store import RedisStore
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy, bearer, token
from tests.support.server import Server, running

DENIED = grpc.StatusCode.PERMISSION_DENIED
OK = grpc.StatusCode.OK


async def register(server: Server, policy: Policy, key: str, name: str, **fields: Any) -> grpc.StatusCode:
    request = pb.RegisterServiceRequest(service=small_service(name, **{"endpoint": "http://agent.test", **fields}))
    code: grpc.StatusCode = await server.stub.RegisterService(request, metadata=policy.metadata(key)).code()
    return code


async def unregister(server: Server, policy: Policy, key: str, name: str) -> grpc.StatusCode:
    call = server.stub.UnregisterService(pb.UnregisterServiceRequest(name=name), metadata=policy.metadata(key))
    code: grpc.StatusCode = await call.code()
    return code


async def owners(redis: RedisProcess) -> tuple[dict[str, str], dict[str, int]]:
    """Return the owner of each service, and the number of services of each owner, from Redis."""
    store = RedisStore(redis.url)
    try:
        owner: Any = await store._client.hgetall(store.keys.owners)
        owned: Any = await store._client.hgetall(store.keys.owned)
    finally:
        await store.close()
    return ({k.decode(): v.decode() for k, v in owner.items()}, {k.decode(): int(v) for k, v in owned.items()})


async def test_ownership_holds_across_processes_and_restarts(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section) as one, running(redis.url, security=policy.section) as two:
        assert await register(one, policy, "agent", "fleet-1") is OK
        assert await register(two, policy, "other", "fleet-1") is DENIED
        assert await unregister(two, policy, "other", "fleet-1") is DENIED
        assert await register(two, policy, "agent", "fleet-1", version="2.0.0") is OK
    async with running(redis.url, security=policy.section) as three:
        assert await register(three, policy, "other", "fleet-1") is DENIED
        assert await unregister(three, policy, "agent", "fleet-1") is OK
        assert await register(three, policy, "other", "fleet-1") is OK
    assert await owners(redis) == ({"fleet-1": "other"}, {"other": 1})


async def test_operator_may_change_a_service_without_owning_it(guarded: Server, policy: Policy) -> None:
    assert await register(guarded, policy, "agent", "fleet-1") is OK
    assert await register(guarded, policy, "operator", "fleet-1", version="2.0.0") is OK
    assert await register(guarded, policy, "other", "fleet-1") is DENIED
    assert await register(guarded, policy, "agent", "fleet-1", version="3.0.0") is OK
    assert await register(guarded, policy, "operator", "fleet-2") is OK
    assert await register(guarded, policy, "agent", "fleet-2") is DENIED


async def test_first_agent_to_write_an_unowned_service_owns_it(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url) as server:
        for name in ("fleet-1", "fleet-2", "theirs"):
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name)))
    assert await owners(redis) == ({}, {})
    async with running(redis.url, security=policy.section) as server:
        # A change by an operator does not make the operator its owner.
        assert await register(server, policy, "operator", "fleet-1", version="2.0.0") is OK
        # The content is unchanged, but the owner is not.
        assert await register(server, policy, "agent", "fleet-1", version="2.0.0") is OK
        assert await register(server, policy, "other", "fleet-1") is DENIED
        assert await register(server, policy, "agent", "theirs") is DENIED
        heartbeat = server.stub.Heartbeat(pb.HeartbeatRequest(names=["fleet-2"]), metadata=policy.metadata("other"))
        assert await heartbeat.code() is OK
        assert await register(server, policy, "agent", "fleet-2") is OK, "a heartbeat does not claim a service"
    assert await owners(redis) == ({"fleet-1": "agent", "fleet-2": "agent"}, {"agent": 2})


async def test_new_owner_of_an_unchanged_service_is_a_change_that_every_process_learns(
    redis: RedisProcess, policy: Policy
) -> None:
    async with running(redis.url) as server:
        await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service("fleet-1")))
    async with running(redis.url, security=policy.section) as one, running(redis.url, security=policy.section) as two:
        for revision in (2, 2):  # the second registration changes nothing
            call = one.stub.RegisterService(
                pb.RegisterServiceRequest(service=small_service("fleet-1")), metadata=policy.metadata("agent")
            )
            assert (await call).service.revision == revision
        got = await two.stub.GetService(
            pb.GetServiceRequest(name="fleet-1", min_revision=2), metadata=policy.metadata("viewer")
        )
        assert got.service.revision == 2
        for server in (one, two):
            assert server.parts.replica.owners == {"fleet-1": "agent"}


async def test_owner_is_removed_with_a_service_whose_lease_expires(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section, lease={"sweep_interval_ms": 20}) as server:
        request = pb.RegisterServiceRequest(service=small_service("fleet-1"))
        request.service.ttl.seconds = 5
        await server.stub.RegisterService(request, metadata=policy.metadata("agent"))
        async with asyncio.timeout(30):
            while "fleet-1" in server.parts.registry._replica.records:
                await asyncio.sleep(0.05)
        assert await owners(redis) == ({}, {})
        assert await register(server, policy, "other", "fleet-1") is OK


async def test_only_one_of_two_concurrent_registrations_owns_a_name(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section) as one, running(redis.url, security=policy.section) as two:
        for i in range(20):
            codes = await asyncio.gather(
                register(one, policy, "agent", f"fleet-{i}"), register(two, policy, "other", f"fleet-{i}")
            )
            assert sorted(code.name for code in codes) == ["OK", "PERMISSION_DENIED"]


@pytest.mark.parametrize("others", [0, 2_500], ids=["one script", "several scripts"])
async def test_heartbeat_with_a_foreign_name_renews_nothing(guarded: Server, policy: Policy, others: int) -> None:
    for key, name in (("agent", "fleet-1"), ("other", "fleet-2")):
        assert await register(guarded, policy, key, name) is OK
    before = await lease_end(guarded, policy, "fleet-1")
    await asyncio.sleep(0.01)
    unknown = [f"fleet-x{i}" for i in range(others)]
    metadata = policy.metadata("agent")
    for names in (["fleet-1", *unknown, "fleet-2"], ["fleet-1", *unknown, "elsewhere"]):
        call = guarded.stub.Heartbeat(pb.HeartbeatRequest(names=names), metadata=metadata)
        assert await call.code() is DENIED
        stream = guarded.stub.KeepAlive(iter([pb.KeepAliveRequest(names=names)]), metadata=metadata)
        assert await stream.code() is DENIED
    assert await lease_end(guarded, policy, "fleet-1") == before
    answer = await guarded.stub.Heartbeat(
        pb.HeartbeatRequest(names=["fleet-1", *unknown, "fleet-gone"]), metadata=metadata
    )
    assert (answer.renewed_count, list(answer.unknown_names)) == (1, [*unknown, "fleet-gone"])


async def lease_end(server: Server, policy: Policy, name: str) -> object:
    answer = await server.stub.GetServiceHealth(
        pb.GetServiceHealthRequest(name=name), metadata=policy.metadata("viewer")
    )
    return answer.lease_expires_at


async def test_denial_does_not_disclose_the_owner(guarded: Server, policy: Policy) -> None:
    assert await register(guarded, policy, "agent", "fleet-1") is OK
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.stub.UnregisterService(
            pb.UnregisterServiceRequest(name="fleet-1"), metadata=policy.metadata("other")
        )
    assert caught.value.details() == "service 'fleet-1' is registered by another identity"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.stub.RegisterService(
            pb.RegisterServiceRequest(service=small_service("billing")), metadata=policy.metadata("agent")
        )
    assert caught.value.details() == "'billing' is not a name that this identity may own"


async def test_batch_reports_a_denial_for_each_service(guarded: Server, policy: Policy) -> None:
    assert await register(guarded, policy, "other", "fleet-2") is OK
    services = [small_service(name) for name in ("fleet-1", "fleet-2", "billing", "fleet-3")]
    answer = await guarded.stub.BatchRegisterServices(
        pb.BatchRegisterServicesRequest(services=services), metadata=policy.metadata("agent")
    )
    assert [result.status.code for result in answer.results] == [0, 7, 7, 0]


async def test_agent_joins_only_groups_that_its_patterns_admit(guarded: Server, policy: Policy) -> None:
    async def update(key: str, paths: list[str], **fields: Any) -> grpc.StatusCode:
        request = pb.UpdateServiceRequest(service=small_service("fleet-1", **fields))
        request.update_mask.paths.extend(paths)
        code: grpc.StatusCode = await guarded.stub.UpdateService(request, metadata=policy.metadata(key)).code()
        return code

    for group in ("payments", "fleet2", "fleet-"):
        assert await register(guarded, policy, "agent", "fleet-9", group=group) is (OK if group == "fleet-" else DENIED)
    for group in ("", "fleet", "fleet-1", "fleet-blue"):
        assert await register(guarded, policy, "agent", "fleet-1", group=group) is OK
    for paths in (["group"], ["*"], []):
        assert await update("agent", paths, group="payments") is DENIED
        assert await update("agent", paths, group="fleet") is OK
    services = [small_service("fleet-2", group="payments"), small_service("fleet-3", group="fleet")]
    answer = await guarded.stub.BatchRegisterServices(
        pb.BatchRegisterServicesRequest(services=services), metadata=policy.metadata("agent")
    )
    assert [result.status.code for result in answer.results] == [7, 0]
    async with (
        aiohttp.ClientSession(guarded.http, headers=policy.headers("agent")) as session,
        session.put("/api/v1/registry/services/fleet-1", json={"group": "payments"}) as refused,
    ):
        assert refused.status == 403
        assert "payments" in (await refused.json())["error"]["message"]
    # An operator moved the service: its owner renews it, and registers it again in its own groups only.
    assert await update("operator", ["group"], group="payments") is OK
    heartbeat = guarded.stub.Heartbeat(pb.HeartbeatRequest(names=["fleet-1"]), metadata=policy.metadata("agent"))
    assert await heartbeat.code() is OK
    assert await register(guarded, policy, "agent", "fleet-1", group="payments") is DENIED
    assert await update("agent", ["version"], version="9.0.0") is DENIED
    assert await register(guarded, policy, "agent", "fleet-1", group="fleet") is OK


async def test_service_quota_holds_across_processes(redis: RedisProcess, policy: Policy) -> None:
    policy.document["api_keys"][1]["limits"] = {"services": 3}
    policy.write()
    async with running(redis.url, security=policy.section) as one, running(redis.url, security=policy.section) as two:
        codes = await asyncio.gather(
            *(register(server, policy, "agent", f"fleet-{i}") for i, server in enumerate([one, two] * 4))
        )
        assert sorted(code.name for code in codes) == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 5
        names, counts = await owners(redis)
        assert counts == {"agent": 3}
        request = pb.RegisterServiceRequest(service=small_service("fleet-more"))
        refused = one.stub.RegisterService(request, metadata=policy.metadata("agent"))
        setting = "(limits.services_per_owner, or limits in the policy)"
        assert await refused.details() == f"service quota of 3 reached {setting}"
        [first, *_] = names
        assert await register(one, policy, "agent", first, version="2.0.0") is OK, (
            "an agent at its quota may still change its services"
        )
        assert await unregister(two, policy, "agent", first) is OK
        assert await register(two, policy, "agent", "fleet-new") is OK


async def test_random_writes_keep_owners_and_counts_consistent(redis: RedisProcess) -> None:
    """Compare random writes of three owners with a model."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    rng = random.Random(seed)
    store = RedisStore(redis.url)
    await store.open()
    head = await store.reader.resolve_head()
    revisions: dict[str, int] = {}
    model: dict[str, str] = {}
    for _ in range(400):
        name, owner = f"s{rng.randrange(8)}", rng.choice(["", "a", "b", "c"])
        claim = Claim(owner, exclusive=bool(owner) and rng.random() < 0.7, max_services=rng.choice([0, 2]))
        delete = name in revisions and rng.random() < 0.3
        current_owner = model.get(name)
        try:
            if delete:
                await store.writer.delete_service(
                    name,
                    seen=head,
                    expected=revisions[name],
                    reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
                    claim=claim,
                )
                assert not claim.exclusive or current_owner in {None, owner}
                model.pop(name, None)
                del revisions[name]
                continue
            revision = await store.writer.write_service(
                small_service(name),
                seen=head,
                expected=revisions.get(name, 0),
                type=EventType.EVENT_TYPE_SERVICE_UPDATED,
                reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
                ttl=60,
                renew=True,
                claim=claim,
            )
        except PermissionDenied:
            assert claim.exclusive
            assert current_owner not in {None, owner}
        except LimitExceeded:
            assert list(model.values()).count(owner) >= claim.max_services > 0
        else:
            assert isinstance(revision, int)
            if owner and current_owner is None and (name not in revisions or claim.exclusive):
                model[name] = owner
            revisions[name] = revision
    names, counts = await owners(redis)
    assert names == model
    assert counts == {owner: list(model.values()).count(owner) for owner in set(model.values())}
    await store.close()


async def test_star_in_a_pattern_also_matches_slashes(redis: RedisProcess, policy: Policy) -> None:
    policy.document["api_keys"] += [policy.entry("agent", patterns=["@acme/*", "team/*-1"]) | {"name": "acme"}]
    policy.document["api_keys"] = [key for key in policy.document["api_keys"] if key["name"] != "agent"]
    policy.write()
    async with running(redis.url, security=policy.section) as server:
        for name in ("@acme/agent", "@acme/team/agent", "team/a/b-1"):
            assert await register(server, policy, "agent", name, group=name) is OK, name
        for name in ("@acme", "@acmes/agent", "acme/agent", "team/a/b-2", "fleet-1"):
            assert await register(server, policy, "agent", name) is DENIED, name
        assert await register(server, policy, "agent", "@acme/agent", group="@acme") is OK
        assert await unregister(server, policy, "other", "@acme/agent") is DENIED


async def test_subject_with_a_slash_is_in_no_pattern(redis: RedisProcess, policy: Policy) -> None:
    policy.document["jwt"][0]["rules"] = [{"role": "agent", "patterns": ["{subject}/*"]}]
    policy.write()
    async with running(redis.url, security=policy.section) as server:

        async def code(subject: str, name: str) -> grpc.StatusCode:
            request = pb.RegisterServiceRequest(service=small_service(name, endpoint="http://agent.test"))
            call = server.stub.RegisterService(request, metadata=bearer(token(subject)))
            found: grpc.StatusCode = await call.code()
            return found

        assert await code("bob@acme.com", "bob@acme.com/agent") is OK
        assert await code("team", "team/b/agent") is OK
        assert await code("team-b", "team/b/other") is DENIED
        assert await code("team/b", "team/b/other") is DENIED
