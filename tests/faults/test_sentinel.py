"""Redis under Sentinel: during failovers reads never fail, and acknowledged writes are kept."""

import asyncio
from pathlib import Path

import grpc
import pytest
from redis.exceptions import ResponseError

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.event_pb2 import EventType
from registry_server.errors import ConfigurationError
from registry_server.store import RedisStore
from tests.support.deployments import SERVICE, Watched, client_of, role_of, wait_until_linked, watched
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import Server, ServerProcess, connected, running
from tests.support.traffic import BEATING, Traffic, info_of, more_writes, reason_of, traffic
from tests.support.watching import Subscriber, following

TIMEOUT = 60


async def register(server: Server, name: str) -> pb.RegisterServiceResponse:
    return await server.stub.RegisterService(pb.RegisterServiceRequest(service=small_service(name)))


async def until(server: Server, *, connected: bool) -> None:
    async with asyncio.timeout(TIMEOUT):
        while (await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).store_connected != connected:
            await asyncio.sleep(0.02)


async def assert_nothing_is_lost(server: Server, seen: Traffic, subscriber: Subscriber) -> None:
    """Check that every acknowledged write exists, and that the watcher received every change once on one stream."""
    # First the events: the lease that no one renews any more ends soon.
    health = await server.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())
    await subscriber.reached(health.revision)
    assert [event.revision for event in subscriber.events] == list(range(1, subscriber.revision + 1))
    assert {event.type for event in subscriber.events} == {EventType.EVENT_TYPE_SERVICE_REGISTERED}
    assert subscriber.streams == 1
    assert BEATING in subscriber.state
    for name, service in seen.acknowledged.items():
        assert (await server.stub.GetService(pb.GetServiceRequest(name=name))).service == service


async def test_failover_of_a_killed_primary_keeps_confirmed_writes(tmp_path: Path) -> None:
    async with (
        watched(tmp_path) as redis,
        running(redis.url, redis={"wait_replicas": 1}) as server,
        following(server.stub) as subscriber,
    ):
        async with traffic(server) as seen:
            await more_writes(seen)
            redis.servers[0].kill()
            primary = await redis.primary(other_than=redis.servers[0])
            await more_writes(seen)
            # It restarts as a primary, and Sentinel turns it into a replica.
            await redis.servers[0].restart()
            async with asyncio.timeout(TIMEOUT):
                while await role_of(redis.servers[0]) != "slave":
                    await asyncio.sleep(0.05)
            await wait_until_linked(redis.servers[0])
            await more_writes(seen)
        seen.report("primary killed")
        assert primary is not redis.servers[0]
        assert seen.refused
        await assert_nothing_is_lost(server, seen, subscriber)


async def test_takeover_and_maintenance_survive_a_failover(tmp_path: Path) -> None:
    async with watched(tmp_path) as redis, running(redis.url, redis={"wait_replicas": 1}) as server:
        for instance_id in ("old", "new"):
            service = small_service("agent", instance_id=instance_id, draining=True)
            await server.stub.RegisterService(pb.RegisterServiceRequest(service=service))
        request = pb.SetMaintenanceRequest(name="agent", enabled=True, reason="why")
        taken = await server.stub.SetMaintenance(request)
        redis.servers[0].kill()
        await redis.primary(other_than=redis.servers[0])
        leases = [pb.Lease(name="agent", instance_id="old"), pb.Lease(name="agent", instance_id="new")]
        beat: pb.HeartbeatResponse | None = None
        async with asyncio.timeout(TIMEOUT):
            while beat is None:
                try:
                    beat = await server.stub.Heartbeat(pb.HeartbeatRequest(leases=leases))
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - until the server follows
        assert beat == pb.HeartbeatResponse(renewed_count=1, superseded_names=["agent"])
        assert (await server.stub.GetService(pb.GetServiceRequest(name="agent"))).service == taken.service


async def test_hung_primary_is_replaced_and_accepts_no_write_afterwards(tmp_path: Path) -> None:
    settings = {"wait_replicas": 1, "timeout_ms": 1000}
    async with (
        watched(tmp_path) as redis,
        running(redis.url, redis=settings) as server,
        following(server.stub) as subscriber,
    ):
        async with traffic(server) as seen:
            await more_writes(seen)
            redis.servers[0].pause()
            await redis.primary(other_than=redis.servers[0])
            await more_writes(seen)
            redis.servers[0].resume()
            await more_writes(seen)
            async with asyncio.timeout(TIMEOUT):
                while await role_of(redis.servers[0]) != "slave":
                    await asyncio.sleep(0.05)
            await more_writes(seen)
        seen.report("primary paused")
        await assert_nothing_is_lost(server, seen, subscriber)


async def test_planned_failover_is_followed(tmp_path: Path) -> None:
    async with (
        watched(tmp_path) as redis,
        running(redis.url, redis={"wait_replicas": 2}) as server,
        following(server.stub) as subscriber,
    ):
        async with traffic(server) as seen:
            await more_writes(seen)
            async with asyncio.timeout(TIMEOUT):
                while not await _fails_over(redis):
                    await asyncio.sleep(0.2)
            await redis.primary(other_than=redis.servers[0])
            await more_writes(seen)
        seen.report("planned failover")
        # The old primary accepts writes for a second after the promotion of the new one. These writes are not confirmed
        # and are lost, and watchers receive the difference.
        for name, service in seen.acknowledged.items():
            assert (await server.stub.GetService(pb.GetServiceRequest(name=name))).service == service
        found = await server.stub.DiscoverServices(pb.DiscoverServicesRequest(page_size=1000))
        await subscriber.reached(found.revision)
        assert subscriber.state == {service.name: service for service in found.services}
        assert subscriber.streams == 1


async def test_writes_lost_by_a_lagging_replica_are_restored(tmp_path: Path) -> None:
    async with (
        watched(tmp_path, replicas=1) as redis,
        running(redis.url) as server,
        following(server.stub) as subscriber,
    ):
        kept = (await register(server, "kept")).service
        primary, replica = redis.servers
        async with asyncio.timeout(TIMEOUT):
            async with client_of(primary) as client:
                while not await client.wait(1, 100):
                    pass
            async with client_of(replica) as client:
                await client.config_set("masterauth", "wrong")  # prevents reconnection
        async with client_of(primary) as client:
            await client.execute_command("CLIENT", "KILL", "TYPE", "replica")  # type: ignore[no-untyped-call]
        lost = (await register(server, "lost")).service
        await subscriber.reached(lost.revision)
        old_cursor = subscriber.cursor

        primary.kill()
        await redis.primary(other_than=primary)
        await until(server, connected=True)
        after = (await register(server, "after")).service
        assert after.revision == lost.revision + 1
        await subscriber.reached(after.revision)
        assert subscriber.state == {"kept": kept, "lost": lost, "after": after}
        assert [event.revision for event in subscriber.events] == [1, 2, 3]
        resumed = server.stub.WatchEvents(pb.WatchEventsRequest(cursor=old_cursor))
        message = await resumed.read()
        assert isinstance(message, pb.WatchEventsResponse)
        assert [event.service.name for event in message.events] == ["after"]
        beat = await server.stub.Heartbeat(pb.HeartbeatRequest(names=["kept", "lost"]))
        assert beat.renewed_count == 2
        async with client_of(replica) as client:
            assert sorted(await client.hkeys("ossa:registry:records")) == ["after", "kept", "lost"]


async def test_unavailable_replicas_have_no_effect(tmp_path: Path) -> None:
    async with (
        watched(tmp_path) as redis,
        running(redis.url) as server,
        following(server.stub) as subscriber,
    ):
        async with traffic(server) as seen:
            await more_writes(seen)
            redis.servers[1].kill()
            redis.servers[2].pause()
            await more_writes(seen, 100)
            redis.servers[2].resume()
        assert not seen.refused
        await assert_nothing_is_lost(server, seen, subscriber)


async def test_write_on_too_few_replicas_is_reported_and_confirmed_later(tmp_path: Path) -> None:
    settings = {"wait_replicas": 2, "wait_timeout_ms": 300}
    async with watched(tmp_path) as redis, running(redis.url, redis=settings) as server:
        before = (await register(server, "before")).service
        redis.servers[1].pause()

        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await register(server, "agent")
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "the change was committed as revision 2" in (refused.value.details() or "")
        info = info_of(refused.value)
        assert info.reason == "NOT_REPLICATED"
        assert info.metadata == {"revision": "2", "confirmedReplicas": "1", "wantedReplicas": "2"}
        made = await server.stub.GetService(pb.GetServiceRequest(name="agent", min_revision=before.revision + 1))
        assert made.service.revision == 2
        # Heartbeats and reads do not wait for replicas.
        assert (await server.stub.Heartbeat(pb.HeartbeatRequest(names=["agent"]))).renewed_count == 1
        strong = pb.DiscoverServicesRequest(consistency=pb.Consistency.CONSISTENCY_STRONG)
        assert (await server.stub.DiscoverServices(strong)).total_size == 2
        # The same registration changes nothing, and is not confirmed either.
        with pytest.raises(grpc.aio.AioRpcError) as again:
            await register(server, "agent")
        assert info_of(again.value).reason == "NOT_REPLICATED"

        redis.servers[1].resume()
        reason = "NOT_REPLICATED"
        async with asyncio.timeout(TIMEOUT):
            while reason == "NOT_REPLICATED":
                try:
                    assert (await register(server, "agent")).service.revision == 2
                    reason = ""
                except grpc.aio.AioRpcError as error:
                    reason = reason_of(error)
        assert not reason
        await server.stub.UnregisterService(pb.UnregisterServiceRequest(name="agent"))


async def test_unavailable_sentinels_have_no_effect_after_the_start(tmp_path: Path) -> None:
    async with watched(tmp_path, replicas=1) as redis, running(redis.url) as server:
        async with traffic(server) as seen:
            await more_writes(seen)
            for sentinel in redis.sentinels:
                await sentinel.stop()
            await more_writes(seen, 100)
        assert not seen.refused


async def test_one_sentinel_is_enough_to_find_the_primary(tmp_path: Path) -> None:
    async with watched(tmp_path, replicas=1) as redis:
        for sentinel in redis.sentinels[:2]:
            await sentinel.stop()
        async with running(redis.url) as server:
            await register(server, "agent")


async def test_start_waits_for_a_sentinel(tmp_path: Path) -> None:
    async with watched(tmp_path, replicas=1) as redis:
        for sentinel in redis.sentinels:
            await sentinel.stop()
        starting = asyncio.create_task(_first_response(redis.url))
        await asyncio.sleep(0.5)
        assert not starting.done()
        for sentinel in redis.sentinels:
            await sentinel.start()
        async with asyncio.timeout(TIMEOUT):
            assert (await starting).service.revision == 1


async def test_passwords_are_used_and_never_logged(tmp_path: Path) -> None:
    secrets = {"password": "hunter2%2F", "own_password": "swordfish"}
    async with watched(tmp_path, replicas=1, password="hunter2/", own_password="swordfish") as redis:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in redis.sentinels)
        url = f"redis+sentinel://:{secrets['password']}@{hosts}/{SERVICE}?sentinel_password={secrets['own_password']}"
        async with (
            ServerProcess(f"--redis.url={url}", "--log.level=debug") as process,
            connected(process.grpc_address) as (_, stub),
        ):
            await stub.RegisterService(pb.RegisterServiceRequest(service=small_service("agent")))
        assert "hunter2" not in str(process.log)
        assert "swordfish" not in str(process.log)


async def test_unknown_service_is_logged_at_start(tmp_path: Path) -> None:
    async with watched(tmp_path, replicas=0) as redis:
        process = ServerProcess(f"--redis.url={redis.url.replace('/agents', '/unknown')}")
        starting = asyncio.create_task(process.start())
        try:
            async with asyncio.timeout(TIMEOUT):
                while not process.grpc_address:
                    await asyncio.sleep(0.02)
            line = await process.logged("store not reachable")
            assert "no Sentinel returned the primary of 'unknown': No such master with that name" in line["reason"]
            async with connected(process.grpc_address) as (_, stub):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.GetService(pb.GetServiceRequest(name="agent"))
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            assert await process.stop() == 0


@pytest.mark.parametrize("replacement", ["sentinel_password=wrong", ""])
async def test_credentials_refused_by_all_sentinels_prevent_a_start(tmp_path: Path, replacement: str) -> None:
    async with watched(tmp_path, replicas=0, own_password="right") as redis:
        store = RedisStore(redis.url.replace("sentinel_password=right", replacement))
        with pytest.raises(ConfigurationError, match=r"^redis\.url: Redis refuses AUTH: .*our credentials are refused"):
            await store.open()
        await store.close()


async def test_primary_replaced_by_sentinel_is_left_although_it_responds(tmp_path: Path) -> None:
    async with watched(tmp_path, replicas=0) as redis, RedisProcess(tmp_path / "other") as other:
        async with running(redis.url) as server, following(server.stub) as subscriber:
            await register(server, "agent")
            for i in range(len(redis.sentinels)):
                await _sentinel(redis, "REMOVE", SERVICE, index=i)
                await _sentinel(redis, "MONITOR", SERVICE, "127.0.0.1", str(other.port), "2", index=i)
            async with client_of(other) as client, asyncio.timeout(TIMEOUT):
                while not await client.hexists("ossa:registry:records", "agent"):
                    await asyncio.sleep(0.02)
            await register(server, "there")
            assert subscriber.streams == 1
        async with client_of(other) as client:
            assert sorted(await client.hkeys("ossa:registry:records")) == ["agent", "there"]


async def _first_response(url: str) -> pb.RegisterServiceResponse:
    async with running(url) as server:
        return await register(server, "agent")


async def _fails_over(redis: Watched) -> bool:
    try:
        await _sentinel(redis, "FAILOVER", SERVICE)
    except ResponseError as error:
        if "NOGOODSLAVE" not in str(error):  # Sentinel has no usable replica for a moment
            raise
        return False
    return True


async def _sentinel(redis: Watched, *command: str, index: int = 0) -> None:
    async with redis.client(redis.sentinels[index]) as client:
        await client.execute_command(f"SENTINEL {command[0]}", *command[1:])  # type: ignore[no-untyped-call]
