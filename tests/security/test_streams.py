"""Open streams end when their credential expires or a reloaded policy revokes it."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import RegistryClient, Unauthenticated
from registry_server.app import Serving, serving
from registry_server.runtime.tasks import cancel
from registry_server.security.keys import hash_text, new_key
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy, bearer, token
from tests.support.server import ServerProcess, connected, settings

EVENTS = "/api/v1/registry/events"
TIMEOUT_SECONDS = 20.0

Metadata = tuple[tuple[str, str], ...]


@asynccontextmanager
async def served(
    redis: RedisProcess, policy: Policy, *, limits: Mapping[str, int] | None = None, **security: Any
) -> AsyncIterator[Serving]:
    async with serving(settings(redis.url, security={**policy.section, **security}, limits=limits or {})) as server:
        async with asyncio.timeout(30):
            await server.parts.loaded.wait()
        yield server


async def end_of_watch(address: str, metadata: Metadata, opened: asyncio.Event) -> grpc.StatusCode:
    """Watch until the server ends the watch; return its code."""
    async with connected(address) as (_, stub):
        call = stub.WatchEvents(pb.WatchEventsRequest(), metadata=metadata)
        await call.read()
        opened.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_to_end(call)
        return caught.value.code()


async def _read_to_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def end_of_keep_alive(address: str, metadata: Metadata, opened: asyncio.Event) -> grpc.StatusCode:
    async with connected(address) as (_, stub):
        call = stub.KeepAlive(metadata=metadata)
        await call.write(pb.KeepAliveRequest(names=["fleet-one"]))
        await call.read()
        opened.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        return caught.value.code()


async def end_of_event_stream(address: str, metadata: Metadata, opened: asyncio.Event) -> str:
    headers = {"Authorization": metadata[0][1]}
    async with aiohttp.ClientSession(f"http://{address}") as session, session.get(EVENTS, headers=headers) as answer:
        assert answer.status == 200
        opened.set()
        text = (await answer.content.read()).decode()
    data = text.rpartition("data: ")[2].partition("\n")[0]
    return str(json.loads(data)["error"]["code"])


@asynccontextmanager
async def streams(server: Serving, metadata: Metadata, agent: Metadata) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Open one stream of each kind; the tasks return the code with which each ends."""
    opened = [asyncio.Event() for _ in range(3)]
    async with asyncio.TaskGroup() as group, asyncio.timeout(TIMEOUT_SECONDS + 10):
        tasks = [
            group.create_task(end_of_watch(server.grpc_address, metadata, opened[0])),
            group.create_task(end_of_keep_alive(server.grpc_address, agent, opened[1])),
            group.create_task(end_of_event_stream(server.http_address, metadata, opened[2])),
        ]
        for event in opened:
            await event.wait()
        yield tasks


async def test_streams_end_when_their_token_expires(redis: RedisProcess, policy: Policy) -> None:
    policy.document["jwt"][0]["leeway_seconds"] = 0
    policy.write()
    async with served(redis, policy) as server:
        expiry = int(time.time()) + 4
        metadata = bearer(token("one", roles=["agent"], exp=expiry))
        async with streams(server, metadata, metadata) as tasks:
            pass
        assert time.time() >= expiry
    assert [task.result() for task in tasks] == [grpc.StatusCode.UNAUTHENTICATED] * 2 + ["UNAUTHENTICATED"]


async def test_streams_end_when_their_key_is_removed(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server:
        metadata = policy.metadata("agent")
        async with streams(server, metadata, metadata) as tasks:
            policy.document["api_keys"] = [key for key in policy.document["api_keys"] if key["name"] != "agent"]
            policy.write()
            server.guard.reload()
    assert [task.result() for task in tasks] == [grpc.StatusCode.UNAUTHENTICATED] * 2 + ["UNAUTHENTICATED"]


async def test_health_and_reflection_streams_end_when_their_key_is_removed(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy, public=("docs",)) as server, connected(server.grpc_address) as (channel, _):
        untyped: Any = channel
        health: Any = health_pb2_grpc.HealthStub(untyped)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(untyped)
        metadata = policy.metadata("viewer")
        watch = health.Watch(health_pb2.HealthCheckRequest(), metadata=metadata)
        stream = reflection.ServerReflectionInfo(metadata=metadata)
        other = health.Watch(health_pb2.HealthCheckRequest(), metadata=policy.metadata("admin"))
        for call in (watch, other):
            await call.read()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await stream.read()
        policy.document["api_keys"] = [key for key in policy.document["api_keys"] if key["name"] != "viewer"]
        policy.write()
        server.guard.reload()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await watch.code() is grpc.StatusCode.UNAUTHENTICATED
            assert await stream.code() is grpc.StatusCode.UNAUTHENTICATED
        assert not other.done()


async def test_streams_of_a_removed_key_end_whatever_else_their_address_does(
    redis: RedisProcess, policy: Policy
) -> None:
    async with served(redis, policy) as server, connected(server.grpc_address) as (_, stub):
        watches = [stub.WatchEvents(pb.WatchEventsRequest(), metadata=policy.metadata("viewer")) for _ in range(200)]
        for watch in watches:
            await watch.read()

        async def flood() -> None:
            while True:
                await stub.GetStats(pb.GetStatsRequest(), metadata=bearer(new_key())).code()
                await stub.GetStats(pb.GetStatsRequest(), metadata=bearer(token("junk", exp=1))).code()

        flooding = [asyncio.create_task(flood()) for _ in range(20)]
        await asyncio.sleep(0.5)
        del policy.document["api_keys"][0]
        policy.write()
        server.guard.reload()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            codes = {await watch.code() for watch in watches}
        await cancel(flooding)
        assert codes == {grpc.StatusCode.UNAUTHENTICATED}


async def test_stream_ends_at_the_expiry_that_a_reload_adds_to_its_key(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server:
        opened = asyncio.Event()
        ending = asyncio.create_task(end_of_watch(server.grpc_address, policy.metadata("viewer"), opened))
        await opened.wait()
        soon = datetime.now(UTC) + timedelta(seconds=2)
        policy.document["api_keys"][0]["expires"] = soon.isoformat()
        policy.write()
        server.guard.reload()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await ending is grpc.StatusCode.UNAUTHENTICATED
        assert datetime.now(UTC) >= soon


async def test_reload_without_reachable_issuer_keeps_tokens_and_withdrawn_keys_end_streams(
    redis: RedisProcess, policy: Policy
) -> None:
    async with served(redis, policy) as server, connected(server.grpc_address) as (_, stub):
        request, metadata = pb.WatchEventsRequest(), bearer(token(roles=["viewer"]))
        watch, opened = stub.WatchEvents(request, metadata=metadata), asyncio.Event()
        await watch.read()
        keys = policy.jwks_file.read_text(encoding="utf-8")
        policy.jwks_file.unlink()
        server.guard.reload()
        ending = asyncio.create_task(end_of_watch(server.grpc_address, bearer(token("new", roles=["viewer"])), opened))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await opened.wait()
        assert not watch.done()
        # The issuer is back and has withdrawn the key.
        document = json.loads(keys)
        document["keys"] = [key for key in document["keys"] if key["kid"] != "RS256"]
        policy.jwks_file.write_text(json.dumps(document), encoding="utf-8")
        server.guard.reload()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await watch.code() is grpc.StatusCode.UNAUTHENTICATED
            assert await ending is grpc.StatusCode.UNAUTHENTICATED


async def test_stream_ends_when_its_role_is_revoked(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server, connected(server.grpc_address) as (_, stub):
        call = stub.KeepAlive(metadata=policy.metadata("agent"))
        await call.write(pb.KeepAliveRequest(names=["fleet-one"]))
        await call.read()
        policy.document["api_keys"][1] |= {"role": "viewer"}
        del policy.document["api_keys"][1]["patterns"]
        policy.write()
        server.guard.reload()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await call.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_other_streams_continue_under_the_new_policy(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server, connected(server.grpc_address) as (_, stub):
        watch = stub.WatchEvents(pb.WatchEventsRequest(), metadata=policy.metadata("viewer"))
        await watch.read()
        keep_alive = stub.KeepAlive(metadata=policy.metadata("agent"))
        await keep_alive.write(pb.KeepAliveRequest(names=["fleet-one"]))
        await keep_alive.read()
        policy.document["api_keys"][1]["patterns"] = ["other-*"]
        policy.write()
        server.guard.reload()
        metadata = policy.metadata("admin")
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("one")), metadata=metadata)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            message = await watch.read()
            assert isinstance(message, pb.WatchEventsResponse)
            assert [event.service.name for event in message.events] == ["one"]
            await keep_alive.write(pb.KeepAliveRequest(names=["other-one"]))
            await keep_alive.read()
            await keep_alive.write(pb.KeepAliveRequest(names=["fleet-one"]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await keep_alive.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        watch.cancel()


async def test_sdk_watch_continues_with_a_new_token_after_expiry(redis: RedisProcess, policy: Policy) -> None:
    policy.document["jwt"][0]["leeway_seconds"] = 0
    policy.write()
    tokens: list[str] = []

    def new_token() -> str:
        tokens.append(token("one", roles=["admin"], exp=int(time.time()) + 3))
        return tokens[-1]

    async with served(redis, policy) as server, RegistryClient(server.grpc_address, token=new_token) as client:
        watch = client.watch(include_snapshot=True, bookmark_interval=0.1)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(tokens) < 3:
                await watch.next_events()
            await client.register_service(small_service("one"))
            while "one" not in watch.services:
                await watch.next_events()
        await watch.close()


async def test_sdk_fails_with_a_token_that_remains_invalid(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server:
        for bad in (token("one", roles=["king"]), lambda: token("one", roles=["king"])):
            async with RegistryClient(server.grpc_address, token=bad) as client:
                with pytest.raises(Unauthenticated):
                    await anext(client.watch())


# SIGHUP.


@asynccontextmanager
async def connected_to(server: ServerProcess) -> AsyncIterator[Any]:
    async with connected(server.grpc_address) as (_, stub):
        yield stub


async def test_sighup_reloads_the_policy_and_keeps_it_if_invalid(redis: RedisProcess, policy: Policy) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}", f"--security.policy-file={policy.file}") as server,
        connected_to(server) as stub,
    ):
        key = new_key()

        async def is_accepted() -> bool:
            call = stub.GetStats(pb.GetStatsRequest(), metadata=bearer(key))
            code = await call.code()
            assert code in {grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED}
            return code is grpc.StatusCode.OK

        assert not await is_accepted()
        policy.document["api_keys"].append({"name": "late", "role": "viewer", "hashes": [hash_text(key)]})
        policy.write()
        assert not await is_accepted()
        server.signal(signal.SIGHUP)
        await server.logged("policy reloaded")
        assert await is_accepted()

        policy.file.write_text("anonymous: none\napi_keys: none\n", encoding="utf-8")
        server.signal(signal.SIGHUP)
        line = await server.logged("policy reload failed")
        assert line["problems"] == [f"{policy.file}:2: api_keys: must be a list"]
        assert await is_accepted()
