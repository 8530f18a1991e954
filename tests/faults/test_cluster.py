"""Redis Cluster: the registry finds the owner of its slot and follows changes of the owner."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
from redis.crc import key_slot

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventType
from tests.support.deployments import Cluster, client_of, cluster, role_of
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, ServerProcess, connected, running
from tests.support.traffic import BEATING, Traffic, more_writes, reason_of, traffic
from tests.support.watching import Subscriber, following

TIMEOUT = 60
PREFIX = "{ossa}:services"
KEY = "{ossa}:registry:revision"


class Started(NamedTuple):
    redis: Cluster
    server: Server
    subscriber: Subscriber


@asynccontextmanager
async def started(tmp_path: Path, **settings: object) -> AsyncIterator[Started]:
    async with (
        cluster(tmp_path, KEY) as redis,
        running(redis.url, redis={"key_prefix": PREFIX, **settings}) as server,
        following(server.stub) as subscriber,
    ):
        yield Started(redis, server, subscriber)


async def assert_nothing_is_lost(it: Started, seen: Traffic) -> None:
    """Check that every acknowledged write exists, and that the watcher received every change once on one stream."""
    # First the events: the lease that no one renews any more ends soon.
    health = await it.server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
    await it.subscriber.reached(health.revision)
    assert [event.revision for event in it.subscriber.events] == list(range(1, it.subscriber.revision + 1))
    assert {event.type for event in it.subscriber.events} == {EventType.EVENT_TYPE_SERVICE_REGISTERED}
    assert it.subscriber.streams == 1
    assert BEATING in it.subscriber.state
    for name, service in seen.acknowledged.items():
        assert (await it.server.stub.GetService(pb.GetServiceRequest(name=name))).service == service


async def wait_for_promotion(node: RedisProcess) -> None:
    async with asyncio.timeout(TIMEOUT):
        while await role_of(node) != "master":
            await asyncio.sleep(0.05)


async def test_all_keys_are_in_one_slot(tmp_path: Path) -> None:
    async with started(tmp_path) as it:
        service = small_service("agent")
        await it.server.stub.RegisterService(pb.RegisterServiceRequest(service=service))
        assert (await it.server.stub.Heartbeat(pb.HeartbeatRequest(names=["agent", "x"]))).renewed_count == 1
        await it.server.stub.GetServiceHealth(pb.GetServiceHealthRequest(name="agent"))
        await it.server.stub.Cleanup(pb.CleanupRequest())
        async with client_of(it.redis.nodes[0]) as client:
            keys = [str(key) for key in await client.keys()]
            assert {"{ossa}:services:agent", "{ossa}:registry:records"} <= set(keys)
            assert {key_slot(key.encode()) for key in keys} == {it.redis.slot}
        await it.server.stub.UnregisterService(pb.UnregisterServiceRequest(name="agent"))


async def test_failover_of_a_killed_owner_keeps_confirmed_writes(tmp_path: Path) -> None:
    async with started(tmp_path) as it:
        async with traffic(it.server) as seen:
            await more_writes(seen)
            # Pause writes before the kill: without wait-replicas, a cluster keeps only replicated writes.
            async with client_of(it.redis.nodes[0]) as client:
                await client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")  # type: ignore[no-untyped-call]
                while await client.wait(1, 100) < 1:
                    pass
            it.redis.nodes[0].kill()
            await wait_for_promotion(it.redis.nodes[3])
            await more_writes(seen)
        seen.report("owner killed")
        assert seen.refused
        await assert_nothing_is_lost(it, seen)


async def test_hung_owner_is_replaced_and_accepts_no_write_afterwards(tmp_path: Path) -> None:
    async with started(tmp_path, wait_replicas=1, timeout_ms=1000) as it:
        async with traffic(it.server) as seen:
            await more_writes(seen)
            it.redis.nodes[0].pause()
            await wait_for_promotion(it.redis.nodes[3])
            it.redis.nodes[0].resume()
            # It becomes a replica of the new owner, which can then confirm writes.
            await more_writes(seen)
            assert await role_of(it.redis.nodes[0]) == "slave"
        seen.report("owner paused")
        await assert_nothing_is_lost(it, seen)


async def test_emptied_owner_and_its_replica_are_restored(tmp_path: Path) -> None:
    async with started(tmp_path, wait_replicas=1) as it:
        async with traffic(it.server) as seen:
            await more_writes(seen)
            async with client_of(it.redis.nodes[0]) as client:
                await client.flushall()
            await more_writes(seen)
        await assert_nothing_is_lost(it, seen)
        async with client_of(it.redis.nodes[0]) as client, client_of(it.redis.nodes[3]) as replica:
            await replica.readonly()
            assert await replica.hlen("{ossa}:registry:records") == await client.hlen("{ossa}:registry:records") > 0


async def test_planned_failover_loses_nothing(tmp_path: Path) -> None:
    async with started(tmp_path) as it:
        async with traffic(it.server) as seen:
            await more_writes(seen)
            async with client_of(it.redis.nodes[3]) as client:
                await client.cluster("FAILOVER")
            await wait_for_promotion(it.redis.nodes[3])
            await more_writes(seen)
        seen.report("planned failover")
        await assert_nothing_is_lost(it, seen)


async def test_migrated_slot_is_followed(tmp_path: Path) -> None:
    async with started(tmp_path) as it:
        async with traffic(it.server, writers=2) as seen:
            await more_writes(seen)
            await _move_slot(it.redis, it.redis.nodes[0], it.redis.nodes[1])
            await more_writes(seen)
        seen.report("slot moved")
        async with client_of(it.redis.nodes[1]) as client:
            assert await client.hlen("{ossa}:registry:records") > len(seen.acknowledged)
        await assert_nothing_is_lost(it, seen)


async def test_failure_of_other_nodes_has_no_effect(tmp_path: Path) -> None:
    async with started(tmp_path) as it:
        async with traffic(it.server) as seen:
            await more_writes(seen)
            it.redis.nodes[2].kill()
            await more_writes(seen)
        await assert_nothing_is_lost(it, seen)


async def test_redis_without_cluster_mode_is_logged(redis: RedisProcess) -> None:
    url = f"redis+cluster://127.0.0.1:{redis.port}"
    process = ServerProcess(f"--redis.url={url}", f"--redis.key-prefix={PREFIX}")
    starting = asyncio.create_task(process.start())
    try:
        async with asyncio.timeout(TIMEOUT):
            while not process.grpc_address:
                await asyncio.sleep(0.02)
        line = await process.logged("store not reachable")
        assert "This instance has cluster support disabled" in line["reason"]
        async with connected(process.grpc_address) as (_, stub):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetService(pb.GetServiceRequest(name="agent"))
            assert reason_of(refused.value) == "STORE_UNAVAILABLE"
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert await process.stop() == 0


async def _move_slot(redis: Cluster, source: RedisProcess, target: RedisProcess) -> None:
    """Move the registry's slot like ``redis-cli --cluster reshard``."""
    async with client_of(source) as old, client_of(target) as new:
        source_id, target_id = await old.cluster("MYID"), await new.cluster("MYID")
        await new.cluster("SETSLOT", redis.slot, "IMPORTING", source_id)
        await old.cluster("SETSLOT", redis.slot, "MIGRATING", target_id)
        while keys := await old.cluster("GETKEYSINSLOT", redis.slot, 10):
            await old.execute_command(  # type: ignore[no-untyped-call]
                "MIGRATE", "127.0.0.1", target.port, "", 0, 20_000, "KEYS", *keys
            )
        await new.cluster("SETSLOT", redis.slot, "NODE", target_id)
        await old.cluster("SETSLOT", redis.slot, "NODE", target_id)
