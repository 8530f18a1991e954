"""Who owns a service: across processes and restarts, and until it is gone."""

import asyncio
from typing import Any

import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.security.identity import Claim
from registry_server.store import RedisStore
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy
from tests.support.server import Server, running

DENIED = grpc.StatusCode.PERMISSION_DENIED
OK = grpc.StatusCode.OK


async def register(server: Server, policy: Policy, who: str, name: str, **fields: Any) -> grpc.StatusCode:
    request = pb.RegisterServiceRequest(service=small_service(name, **fields))
    code: grpc.StatusCode = await server.stub.RegisterService(request, metadata=policy.metadata(who)).code()
    return code


async def unregister(server: Server, policy: Policy, who: str, name: str) -> grpc.StatusCode:
    call = server.stub.UnregisterService(pb.UnregisterServiceRequest(name=name), metadata=policy.metadata(who))
    code: grpc.StatusCode = await call.code()
    return code


async def owners(redis: RedisProcess) -> tuple[dict[str, str], dict[str, int]]:
    """What Redis has: name to owner, owner to how many."""
    store = RedisStore(redis.url)
    try:
        owner: Any = await store._client.hgetall(store.keys.owners)
        owned: Any = await store._client.hgetall(store.keys.owned)
    finally:
        await store.close()
    return ({k.decode(): v.decode() for k, v in owner.items()}, {k.decode(): int(v) for k, v in owned.items()})


async def test_another_process_knows_the_owner_and_so_does_the_next_one(redis: RedisProcess, policy: Policy) -> None:
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


async def test_an_operator_may_change_it_and_it_stays_whose_it_is(guarded: Server, policy: Policy) -> None:
    assert await register(guarded, policy, "agent", "fleet-1") is OK
    assert await register(guarded, policy, "operator", "fleet-1", version="2.0.0") is OK
    assert await register(guarded, policy, "other", "fleet-1") is DENIED
    assert await register(guarded, policy, "agent", "fleet-1", version="3.0.0") is OK
    assert await register(guarded, policy, "operator", "fleet-2") is OK
    assert await register(guarded, policy, "agent", "fleet-2") is DENIED


async def test_the_first_agent_that_writes_a_service_without_an_owner_owns_it(
    redis: RedisProcess, policy: Policy
) -> None:
    async with running(redis.url) as server:
        for name in ("fleet-1", "fleet-2", "theirs"):
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name)))
    assert await owners(redis) == ({}, {})
    async with running(redis.url, security=policy.section) as server:
        # An operator that changes it does not take it from the agent that runs it.
        assert await register(server, policy, "operator", "fleet-1", version="2.0.0") is OK
        assert await register(server, policy, "agent", "fleet-1", version="2.0.0") is OK  # the same: only the lease
        assert await register(server, policy, "other", "fleet-1") is DENIED
        assert await register(server, policy, "agent", "theirs") is DENIED
        beat = server.stub.Heartbeat(pb.HeartbeatRequest(names=["fleet-2"]), metadata=policy.metadata("other"))
        assert await beat.code() is OK
        assert await register(server, policy, "agent", "fleet-2") is OK, "a heartbeat takes nothing"
    assert await owners(redis) == ({"fleet-1": "agent", "fleet-2": "agent"}, {"agent": 2})


async def test_the_owner_goes_with_the_service_when_its_lease_ends(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section, lease={"sweep_interval_ms": 20}) as server:
        request = pb.RegisterServiceRequest(service=small_service("fleet-1"))
        request.service.ttl.seconds = 5
        await server.stub.RegisterService(request, metadata=policy.metadata("agent"))
        async with asyncio.timeout(30):
            while "fleet-1" in server.parts.registry._replica.records:
                await asyncio.sleep(0.05)
        assert await owners(redis) == ({}, {})
        assert await register(server, policy, "other", "fleet-1") is OK


async def test_of_two_that_register_a_name_at_once_one_owns_it(redis: RedisProcess, policy: Policy) -> None:
    async with running(redis.url, security=policy.section) as one, running(redis.url, security=policy.section) as two:
        for i in range(20):
            codes = await asyncio.gather(
                register(one, policy, "agent", f"fleet-{i}"), register(two, policy, "other", f"fleet-{i}")
            )
            assert sorted(code.name for code in codes) == ["OK", "PERMISSION_DENIED"]


async def test_a_heartbeat_with_a_name_of_another_renews_nothing(guarded: Server, policy: Policy) -> None:
    for who, name in (("agent", "fleet-1"), ("other", "fleet-2")):
        assert await register(guarded, policy, who, name) is OK
    before = await ends(guarded, policy, "fleet-1")
    await asyncio.sleep(0.01)
    for names in (["fleet-1", "fleet-2"], ["fleet-1", "elsewhere"]):
        call = guarded.stub.Heartbeat(pb.HeartbeatRequest(names=names), metadata=policy.metadata("agent"))
        assert await call.code() is DENIED
    assert await ends(guarded, policy, "fleet-1") == before
    answer = await guarded.stub.Heartbeat(
        pb.HeartbeatRequest(names=["fleet-1", "fleet-gone"]), metadata=policy.metadata("agent")
    )
    assert (answer.renewed_count, list(answer.unknown_names)) == (1, ["fleet-gone"])


async def ends(server: Server, policy: Policy, name: str) -> object:
    answer = await server.stub.GetServiceHealth(
        pb.GetServiceHealthRequest(name=name), metadata=policy.metadata("viewer")
    )
    return answer.lease_expires_at


async def test_nobody_is_told_who_the_owner_is(guarded: Server, policy: Policy) -> None:
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
    assert caught.value.details() == "'billing' is not a name that this identity may have"


async def test_a_batch_tells_for_each_service(guarded: Server, policy: Policy) -> None:
    assert await register(guarded, policy, "other", "fleet-2") is OK
    services = [small_service(name) for name in ("fleet-1", "fleet-2", "billing", "fleet-3")]
    answer = await guarded.stub.BatchRegisterServices(
        pb.BatchRegisterServicesRequest(services=services), metadata=policy.metadata("agent")
    )
    assert [result.status.code for result in answer.results] == [0, 7, 7, 0]


async def test_an_agent_owns_no_more_than_it_may_in_all_processes(redis: RedisProcess, policy: Policy) -> None:
    policy.document["api_keys"][1]["limits"] = {"services": 3}
    policy.write()
    async with running(redis.url, security=policy.section) as one, running(redis.url, security=policy.section) as two:
        codes = await asyncio.gather(
            *(register(server, policy, "agent", f"fleet-{i}") for i, server in enumerate([one, two] * 4))
        )
        assert sorted(code.name for code in codes) == ["OK"] * 3 + ["RESOURCE_EXHAUSTED"] * 5
        names, counts = await owners(redis)
        assert counts == {"agent": 3}
        [first, *_] = names
        assert await register(one, policy, "agent", first, version="2.0.0") is OK, "what it has it may change"
        assert await unregister(two, policy, "agent", first) is OK
        assert await register(two, policy, "agent", "fleet-new") is OK


async def test_the_count_is_what_the_owners_say_whatever_happens(redis: RedisProcess) -> None:
    """Random writes of three owners against a plain dict."""
    import random  # noqa: PLC0415

    from ossa.registry.v1.event_pb2 import EventReason, EventType  # noqa: PLC0415
    from registry_server.errors import LimitExceeded, PermissionDenied  # noqa: PLC0415

    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    store = RedisStore(redis.url)
    await store.open()
    epoch = (await store.reader.resolve_head()).epoch
    revisions: dict[str, int] = {}
    model: dict[str, str] = {}
    for _ in range(400):
        name, owner = f"s{dice.randrange(8)}", dice.choice(["", "a", "b", "c"])
        claim = Claim(owner, exclusive=bool(owner) and dice.random() < 0.7, max_services=dice.choice([0, 2]))
        delete = name in revisions and dice.random() < 0.3
        held = model.get(name)
        try:
            if delete:
                await store.writer.delete_service(
                    name,
                    epoch=epoch,
                    expected=revisions[name],
                    reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
                    claim=claim,
                )
                assert not claim.exclusive or held in {None, owner}
                model.pop(name, None)
                del revisions[name]
                continue
            made = await store.writer.write_service(
                small_service(name),
                epoch=epoch,
                expected=revisions.get(name, 0),
                type=EventType.EVENT_TYPE_SERVICE_UPDATED,
                reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
                ttl=60,
                renew=True,
                claim=claim,
            )
        except PermissionDenied:
            assert claim.exclusive
            assert held not in {None, owner}
        except LimitExceeded:
            assert list(model.values()).count(owner) >= claim.max_services > 0
        else:
            assert isinstance(made, int)
            if owner and held is None and (name not in revisions or claim.exclusive):
                model[name] = owner
            revisions[name] = made
    names, counts = await owners(redis)
    assert names == model
    assert counts == {owner: list(model.values()).count(owner) for owner in set(model.values())}
    await store.close()
