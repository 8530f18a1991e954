"""Open streams end when their credential does, and the policy is read again while they are open."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import grpc
import pytest

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_client import RegistryClient, Unauthenticated
from registry_server.app import Serving, serving
from registry_server.security.keys import hash_text, new_key
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy, bearer, token
from tests.support.server import ServerProcess, connected, settings

EVENTS = "/api/v1/registry/events"
WITHIN = 20.0

Metadata = tuple[tuple[str, str], ...]


@asynccontextmanager
async def served(redis: RedisProcess, policy: Policy, **sections: Any) -> AsyncIterator[Serving]:
    async with serving(settings(redis.url, security=policy.section, **sections)) as made:
        async with asyncio.timeout(30):
            await made.parts.loaded.wait()
        yield made


async def watch_end(address: str, metadata: Metadata, opened: asyncio.Event) -> grpc.StatusCode:
    async with connected(address) as (_, stub):
        call = stub.WatchEvents(pb.WatchEventsRequest(), metadata=metadata)
        await call.read()
        opened.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _all(call)
        return caught.value.code()


async def _all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def keep_alive_end(address: str, metadata: Metadata, opened: asyncio.Event) -> grpc.StatusCode:
    async with connected(address) as (_, stub):
        call = stub.KeepAlive(metadata=metadata)
        await call.write(pb.KeepAliveRequest(names=["fleet-one"]))
        await call.read()
        opened.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        return caught.value.code()


async def sse_end(address: str, metadata: Metadata, opened: asyncio.Event) -> str:
    headers = {"Authorization": metadata[0][1]}
    async with aiohttp.ClientSession(f"http://{address}") as session, session.get(EVENTS, headers=headers) as answer:
        assert answer.status == 200
        opened.set()
        text = (await answer.content.read()).decode()
    data = text.rpartition("data: ")[2].partition("\n")[0]
    return str(json.loads(data)["error"]["code"])


@asynccontextmanager
async def streams(server: Serving, metadata: Metadata, agent: Metadata) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """One of each kind, open; the tasks tell how each ended."""
    opened = [asyncio.Event() for _ in range(3)]
    async with asyncio.TaskGroup() as group, asyncio.timeout(WITHIN + 10):
        tasks = [
            group.create_task(watch_end(server.grpc_address, metadata, opened[0])),
            group.create_task(keep_alive_end(server.grpc_address, agent, opened[1])),
            group.create_task(sse_end(server.http_address, metadata, opened[2])),
        ]
        for event in opened:
            await event.wait()
        yield tasks


async def test_a_stream_ends_when_its_token_expires(redis: RedisProcess, policy: Policy) -> None:
    policy.document["jwt"][0]["leeway_seconds"] = 0
    policy.write()
    async with served(redis, policy) as server:
        ends = int(time.time()) + 4
        metadata = bearer(token("one", roles=["agent"], exp=ends))
        async with streams(server, metadata, metadata) as tasks:
            pass
        assert time.time() >= ends
    assert [task.result() for task in tasks] == [grpc.StatusCode.UNAUTHENTICATED] * 2 + ["UNAUTHENTICATED"]


async def test_a_stream_ends_when_its_key_is_taken_away(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server:
        metadata = policy.metadata("agent")
        async with streams(server, metadata, metadata) as tasks:
            policy.document["api_keys"] = [key for key in policy.document["api_keys"] if key["name"] != "agent"]
            policy.write()
            server.guard.reload()
    assert [task.result() for task in tasks] == [grpc.StatusCode.UNAUTHENTICATED] * 2 + ["UNAUTHENTICATED"]


async def test_a_stream_ends_when_its_key_is_given_an_end(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server:
        opened = asyncio.Event()
        ending = asyncio.create_task(watch_end(server.grpc_address, policy.metadata("viewer"), opened))
        await opened.wait()
        soon = datetime.now(UTC) + timedelta(seconds=2)
        policy.document["api_keys"][0]["expires"] = soon.isoformat()
        policy.write()
        server.guard.reload()
        async with asyncio.timeout(WITHIN):
            assert await ending is grpc.StatusCode.UNAUTHENTICATED
        assert datetime.now(UTC) >= soon


async def test_a_stream_ends_when_its_role_is_taken_away(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server, connected(server.grpc_address) as (_, stub):
        call = stub.KeepAlive(metadata=policy.metadata("agent"))
        await call.write(pb.KeepAliveRequest(names=["fleet-one"]))
        await call.read()
        policy.document["api_keys"][1] |= {"role": "viewer"}
        del policy.document["api_keys"][1]["patterns"]
        policy.write()
        server.guard.reload()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(WITHIN):
                await call.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_other_streams_go_on_by_the_new_policy(redis: RedisProcess, policy: Policy) -> None:
    async with served(redis, policy) as server, connected(server.grpc_address) as (_, stub):
        watch = stub.WatchEvents(pb.WatchEventsRequest(), metadata=policy.metadata("viewer"))
        await watch.read()
        beats = stub.KeepAlive(metadata=policy.metadata("agent"))
        await beats.write(pb.KeepAliveRequest(names=["fleet-one"]))
        await beats.read()
        policy.document["api_keys"][1]["patterns"] = ["other-*"]
        policy.write()
        server.guard.reload()
        metadata = policy.metadata("admin")
        await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("one")), metadata=metadata)
        async with asyncio.timeout(WITHIN):
            message = await watch.read()
            assert isinstance(message, pb.WatchEventsResponse)
            assert [event.service.name for event in message.events] == ["one"]
            await beats.write(pb.KeepAliveRequest(names=["other-one"]))
            await beats.read()
            await beats.write(pb.KeepAliveRequest(names=["fleet-one"]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await beats.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        watch.cancel()


async def test_the_sdk_goes_on_with_a_new_token_when_the_old_one_expires(redis: RedisProcess, policy: Policy) -> None:
    policy.document["jwt"][0]["leeway_seconds"] = 0
    policy.write()
    made: list[str] = []

    def fresh() -> str:
        made.append(token("one", roles=["admin"], exp=int(time.time()) + 3))
        return made[-1]

    async with served(redis, policy) as server, RegistryClient(server.grpc_address, token=fresh) as client:
        watch = client.watch(include_snapshot=True, bookmark_interval=0.1)
        async with asyncio.timeout(WITHIN):
            while len(made) < 3:
                await watch.next_events()
            await client.register_service(small_service("one"))
            while "one" not in watch.services:
                await watch.next_events()
        await watch.close()


async def test_the_sdk_does_not_go_on_with_a_token_that_stays_bad(redis: RedisProcess, policy: Policy) -> None:
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


async def test_sighup_reads_the_policy_again_and_a_broken_one_changes_nothing(
    redis: RedisProcess, policy: Policy
) -> None:
    async with (
        ServerProcess(f"--redis.url={redis.url}", f"--security.policy-file={policy.file}") as server,
        connected_to(server) as stub,
    ):
        key = new_key()

        async def is_known() -> bool:
            call = stub.GetStats(pb.GetStatsRequest(), metadata=bearer(key))
            code = await call.code()
            assert code in {grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED}
            return code is grpc.StatusCode.OK

        assert not await is_known()
        policy.document["api_keys"].append({"name": "late", "role": "viewer", "hashes": [hash_text(key)]})
        policy.write()
        assert not await is_known()
        server.signal(signal.SIGHUP)
        await server.logged("policy read again")
        assert await is_known()

        policy.file.write_text("anonymous: none\napi_keys: nobody\n", encoding="utf-8")
        server.signal(signal.SIGHUP)
        line = await server.logged("the policy was not read again; the old one stays")
        assert line["problems"] == [f"{policy.file}:2: api_keys: must be a list"]
        assert await is_known()
