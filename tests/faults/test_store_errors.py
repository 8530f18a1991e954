"""Redis refuses commands, or holds damaged keys, while the registry runs: each is named, and none ends the process."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from ossa.registry.v1.service_pb2 import HealthStatus
from registry_server.store.keys import Keys
from registry_server.store.lua import Scripts
from registry_server.store.redis_binary import find_redis_servers
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.security import Policy, registry_acl
from tests.support.server import Server, running
from tests.support.waiting import until

KEYS = Keys.under("ossa:services")
PASSWORD = "secret-of-the-registry"
SERVICES = [f"fleet-{i}" for i in range(3)]
# All commands of the registry; INFO is optional while it runs.
COMMANDS = sorted({*re.findall(r"try\('(\w+)'", Scripts().sources["access"]), "EVALSHA", "SCRIPT", "PING"})
TIMEOUT = 12  # seconds; a write waits for up to five
READ_TIMEOUT = 4  # less than a read that waits for the store would take


class Rig:
    """A server whose Redis user can be changed, and one agent that uses all parts of it."""

    def __init__(self, server: Server, admin: Any, metadata: Any) -> None:
        self.server = server
        self.admin = admin
        self.metadata = metadata
        self.number = 0
        self._passed = 0.0
        server.parts.problems._monotonic = lambda: time.monotonic() + self._passed

    @property
    def problems(self) -> str:
        return "\n".join(self.server.parts.problems.active.values())

    async def permit(self, *rules: str) -> None:
        await self.admin.connection_pool.disconnect()  # Redis may have been restarted
        await self.admin.execute_command("ACL", "SETUSER", "registry", "reset", *registry_acl(PASSWORD), *rules)

    async def work(self) -> set[grpc.StatusCode]:
        """Write with every script; verify that reads are answered. Return the codes of the writes."""
        stub = self.server.stub
        self.number += 1
        new = small_service(f"fleet-new-{self.number}")
        calls: list[Callable[[], Any]] = [
            lambda: stub.RegisterService(self.registration(new.name), metadata=self.metadata, timeout=TIMEOUT),
            lambda: stub.RegisterService(self.registration(SERVICES[0]), metadata=self.metadata, timeout=TIMEOUT),
            lambda: stub.Heartbeat(pb.HeartbeatRequest(names=SERVICES), metadata=self.metadata, timeout=TIMEOUT),
            lambda: stub.ReportServiceHealth(
                pb.ReportServiceHealthRequest(name=SERVICES[1], status=HealthStatus.HEALTH_STATUS_UNKNOWN),
                metadata=self.metadata,
                timeout=TIMEOUT,
            ),
            lambda: stub.UnregisterService(
                pb.UnregisterServiceRequest(name=new.name), metadata=self.metadata, timeout=TIMEOUT
            ),
        ]
        outcomes = [await self._outcome(call) for call in calls]
        found = await stub.DiscoverServices(pb.DiscoverServicesRequest(), metadata=self.metadata, timeout=READ_TIMEOUT)
        assert set(SERVICES) <= {service.name for service in found.services}
        for name in SERVICES:
            await stub.GetService(pb.GetServiceRequest(name=name), metadata=self.metadata, timeout=READ_TIMEOUT)
        health = pb.GetServiceHealthRequest(name=SERVICES[0])
        await stub.GetServiceHealth(health, metadata=self.metadata, timeout=TIMEOUT)
        return set(outcomes)

    @staticmethod
    def registration(name: str) -> pb.RegisterServiceRequest:
        service = small_service(name)
        service.ttl.seconds = 3600
        service.health_check.heartbeat.SetInParent()
        return pb.RegisterServiceRequest(service=service)

    async def _outcome(self, call: Callable[[], Any]) -> grpc.StatusCode:
        started = call()
        code: grpc.StatusCode = await started.code()
        details = await started.details() or ""
        assert code in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND}, details
        assert not re.search(rf"{PASSWORD}|127\.0\.0\.1|ossa:", details)
        if code is grpc.StatusCode.UNAVAILABLE:
            status = Status.FromString(dict(await started.trailing_metadata())["grpc-status-details-bin"])
            assert any(detail.Is(RetryInfo.DESCRIPTOR) for detail in status.details)
        return code

    async def health(self) -> dict[str, Any]:
        """Return the answer of ``GET /health``."""
        async with aiohttp.ClientSession() as client, client.get(f"{self.server.http}/health") as answer:
            assert answer.status == 200
            document: dict[str, Any] = await answer.json()
            return document

    async def expect_named(self, *words: str) -> None:
        """Wait until ``/health`` names the fault, and verify that it names no secret and no host."""
        await until(lambda: all(word in self.problems for word in words))
        health = await self.health()
        assert health["status"] == "degraded"
        assert not re.search(rf"{PASSWORD}|127\.0\.0\.1", str(health))

    async def expect_recovery(self) -> None:
        """Wait until nothing is wrong and all writes succeed."""
        self._passed += 60  # a refused command remains a problem for seconds
        async with asyncio.timeout(60):
            while True:
                codes = await self.work()
                if codes == {grpc.StatusCode.OK} and await self.health() == {"status": "healthy"}:
                    return
                await asyncio.sleep(0.2)


@asynccontextmanager
async def open_rig(process: RedisProcess, policy: Policy, **sections: Any) -> AsyncIterator[Rig]:
    client: Any = Redis.from_url(process.url)
    async with client as admin:
        await admin.execute_command("ACL", "SETUSER", "registry", "reset", *registry_acl(PASSWORD))
        url = process.url.replace("//", f"//registry:{PASSWORD}@")
        checks = {"enabled": True, "member_period_ms": 1000}
        async with running(url, security=policy.section, health_check=checks, **sections) as server:
            rig = Rig(server, admin, policy.metadata("agent"))
            for name in SERVICES:
                await server.stub.RegisterService(rig.registration(name), metadata=rig.metadata)
            yield rig


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return Policy(tmp_path / "policy")


async def drop_connections(rig: Rig) -> None:
    await rig.admin.execute_command("CLIENT", "KILL", "USER", "registry")


async def forget_scripts(rig: Rig) -> None:
    await rig.admin.script_flush()


async def delete_document(rig: Rig) -> None:
    await rig.admin.delete(KEYS.document_prefix + SERVICES[2])


async def add_record(rig: Rig) -> None:
    revision = int(await rig.admin.get(KEYS.revision))
    record = small_service("fleet-extra", revision=revision).SerializeToString()
    await rig.admin.hset(KEYS.records, "fleet-extra", record)


async def lose_revision(rig: Rig) -> None:
    await rig.admin.decr(KEYS.revision)


# What makes the registry use a command that its daily work does not need.
TRIGGERS: dict[str, Callable[[Rig], Awaitable[None]]] = {
    "HGETALL": add_record,
    "HSCAN": add_record,
    "HVALS": add_record,
    "PING": drop_connections,
    "SADD": delete_document,
    "SCRIPT": forget_scripts,
    "XRANGE": drop_connections,
    "XREVRANGE": lose_revision,
}


async def forbid_and_permit(rig: Rig, command: str) -> None:
    await rig.permit(f"-{command.lower()}")
    if command in TRIGGERS:
        await TRIGGERS[command](rig)
    await rig.work()
    await rig.expect_named(command, "NOPERM")
    await rig.permit()
    await rig.expect_recovery()


@pytest.mark.parametrize("command", COMMANDS)
async def test_forbidden_command_is_named_until_it_is_permitted(
    redis: RedisProcess, policy: Policy, command: str
) -> None:
    async with open_rig(redis, policy) as rig:
        await forbid_and_permit(rig, command)


async def test_commands_forbidden_by_the_oldest_redis_are_named_too(tmp_path: Path, policy: Policy) -> None:
    oldest = list(find_redis_servers())[-1]
    async with RedisProcess(tmp_path / "oldest", binary=oldest) as redis, open_rig(redis, policy) as rig:
        for command in ("TIME", "ZADD", "XADD", "XREAD", "EVALSHA"):
            await forbid_and_permit(rig, command)


ACCESS = {
    "keys": (["resetkeys"], "NOPERM"),
    "password": (["resetpass", ">another"], "WRONGPASS"),
    "user": (["off"], "WRONGPASS"),
    "all commands": (["-@all", "+@connection"], "NOPERM"),
    "writes": (["-@write"], "NOPERM"),
}


@pytest.mark.parametrize("change", ACCESS)
async def test_lost_access_is_named_until_it_is_granted_again(redis: RedisProcess, policy: Policy, change: str) -> None:
    rules, cause = ACCESS[change]
    async with open_rig(redis, policy) as rig:
        await rig.permit(*rules)
        await drop_connections(rig)
        await rig.work()
        await rig.expect_named(cause)
        await rig.permit()
        await rig.expect_recovery()


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-FUTURE no version knows this\r\n" * 50, b"*1\r\n$-5"]
)
async def test_answers_that_are_not_those_of_redis_are_survived(
    redis: RedisProcess, policy: Policy, answer: bytes
) -> None:
    writers: list[asyncio.StreamWriter] = []

    async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError):
            while await reader.read(65536):
                writer.write(answer)

    async with open_rig(redis, policy) as rig:
        await redis.stop()
        imposter = await asyncio.start_server(answer_all, "127.0.0.1", redis.port)
        await rig.work()
        await rig.expect_named("Redis cannot be followed")
        imposter.close()
        for writer in writers:
            writer.close()
        await redis.start()
        await rig.permit()
        await rig.expect_recovery()


async def test_command_that_a_restart_disabled_is_named(tmp_path: Path, policy: Policy) -> None:
    async with RedisProcess(tmp_path / "redis") as redis, open_rig(redis, policy) as rig:
        for arguments in (("--rename-command", "XREAD", ""), ("--rename-command", "EVALSHA", "OTHER"), ()):
            redis._args = arguments
            await redis.restart()
            await rig.permit()
            if arguments:
                await rig.work()
                await rig.expect_named(arguments[1])
        await rig.expect_recovery()


# Keys that daily work reads: the others belong to repairs, and are written again.
TYPED_KEYS = ("revision", "epoch", "records", "leases", "ttls", "events", "checks", "sweep", "bare", "owners", "owned")


@pytest.mark.parametrize("field", [*TYPED_KEYS, "members", "secret"])
async def test_key_of_another_type_is_named_until_it_is_deleted(
    redis: RedisProcess, policy: Policy, field: str
) -> None:
    async with open_rig(redis, policy) as rig:
        key = getattr(KEYS, field)
        await rig.admin.delete(key)
        await rig.admin.rpush(key, "of another program")
        if field == "bare":
            await delete_document(rig)
        if field == "secret":
            await drop_connections(rig)
        await rig.work()
        if field not in {"revision", "sweep"}:  # the next change or sweep replaces them
            await rig.expect_named(key, "WRONGTYPE")
        await rig.admin.delete(key)
        await rig.expect_recovery()
        # The store is complete again: nothing that was lost with the key is missing.
        await until_async(lambda: is_complete(rig))


async def is_complete(rig: Rig) -> bool:
    """Return whether Redis holds everything that belongs to the services of the rig."""
    names = {name.encode() for name in SERVICES}
    held = [await rig.admin.hkeys(getattr(KEYS, field)) for field in ("records", "ttls", "owners")]
    held.append(await rig.admin.zrange(KEYS.leases, 0, -1))
    documents = await rig.admin.exists(*(KEYS.document_prefix + name for name in SERVICES))
    # A service whose owner was removed is counted twice if its owner writes it before the next sweep.
    owned = int(await rig.admin.hget(KEYS.owned, "agent") or 0)
    return all(set(each) == names for each in held) and documents == len(names) and owned >= len(names)


async def until_async(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.1)


async def hset_junk(rig: Rig, key: str) -> None:
    await rig.admin.hset(key, SERVICES[0], b"\xff\xfe junk")


async def hdel(rig: Rig, key: str) -> None:
    await rig.admin.hdel(key, SERVICES[0])


async def delete(rig: Rig, key: str) -> None:
    await rig.admin.delete(key)


async def zrem(rig: Rig, key: str) -> None:
    await rig.admin.zrem(key, SERVICES[0])


async def older_record(rig: Rig, key: str) -> None:
    record = small_service(SERVICES[0], revision=0).SerializeToString() + b"\x48\x01"
    await rig.admin.hset(key, SERVICES[1], record)


async def set_junk(rig: Rig, key: str) -> None:
    await rig.admin.set(key, "junk")


async def add_junk_event(rig: Rig, key: str) -> None:
    revision = int(await rig.admin.get(KEYS.revision)) + 1
    await rig.admin.xadd(key, {"foo": "bar"}, id=f"{revision}-0")
    await rig.admin.set(KEYS.revision, revision)


async def expire_junk(rig: Rig, key: str) -> None:
    await rig.admin.hset(key, "fleet-junk", b"\xff\xff\xff")
    await rig.admin.hset(KEYS.ttls, "fleet-junk", 100)
    await rig.admin.zadd(KEYS.leases, {"fleet-junk": 1, b"\xff\xfe": 1})


async def add_event(rig: Rig, key: str, **fields: Any) -> None:
    revision = int(await rig.admin.get(KEYS.revision)) + 1
    epoch = await rig.admin.get(KEYS.epoch)
    event = {"e": epoch, "r": 1, "t": 1, "s": b"", "b": b"", "x": "", "o": "", **fields}
    await rig.admin.xadd(key, event, id=f"{revision}-0")
    await rig.admin.set(KEYS.revision, revision)


async def add_event_without_a_change(rig: Rig, key: str) -> None:
    await add_event(rig, key, k=3, n="x", b=b"\xff\xff")


async def add_undecodable_service(rig: Rig, key: str) -> None:
    await add_event(rig, key, k=1, n="fleet-0", s=b"\xff\xff\xff")


CHANGES = {
    "record removed": (hdel, "records"),
    "records deleted": (delete, "records"),
    "record damaged": (hset_junk, "records"),
    "record of another service": (older_record, "records"),
    "lease removed": (zrem, "leases"),
    "leases deleted": (delete, "leases"),
    "length of a lease removed": (hdel, "ttls"),
    "length of a lease damaged": (hset_junk, "ttls"),
    "lengths of leases deleted": (delete, "ttls"),
    "owner removed": (hdel, "owners"),
    "owners deleted": (delete, "owners"),
    "counts of owners deleted": (delete, "owned"),
    "members deleted": (delete, "members"),
    "checks deleted": (delete, "checks"),
    "check damaged": (hset_junk, "checks"),
    "revision damaged": (set_junk, "revision"),
    "time of the sweep damaged": (set_junk, "sweep"),
    "epoch deleted": (delete, "epoch"),
    "event that no registry wrote": (add_junk_event, "events"),
    "event with a damaged service": (add_undecodable_service, "events"),
    "event without a change": (add_event_without_a_change, "events"),
    "damaged record that expires": (expire_junk, "records"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_change_by_another_program_is_repaired(redis: RedisProcess, policy: Policy, change: str) -> None:
    act, field = CHANGES[change]
    async with open_rig(redis, policy) as rig:
        stub = rig.server.stub
        before = rig.server.parts.replica.records.copy()
        await act(rig, getattr(KEYS, field))
        # A write does not wait for the sweep, and is never a conflict without an end.
        update = small_service(SERVICES[0], version="2.0.0")
        update.ttl.seconds = 3600
        update.health_check.heartbeat.SetInParent()
        request = pb.RegisterServiceRequest(service=update)
        async with asyncio.timeout(60):
            while await stub.RegisterService(request, metadata=rig.metadata).code() is not grpc.StatusCode.OK:
                await asyncio.sleep(0.2)
        await until_async(lambda: is_complete(rig))
        await rig.expect_recovery()
        untouched = SERVICES[2]
        assert rig.server.parts.replica.records[untouched].wire == before[untouched].wire
        assert await rig.admin.hget(KEYS.records, untouched) == before[untouched].wire


async def test_event_of_another_program_is_named_until_the_stream_is_deleted(
    redis: RedisProcess, policy: Policy
) -> None:
    async with open_rig(redis, policy) as rig:
        await rig.admin.xadd(KEYS.events, {"foo": "bar"})  # far beyond the newest revision
        await rig.work()
        await rig.expect_named("Redis cannot be followed", KEYS.events)
        await rig.expect_named("XADD in commit.lua", KEYS.events)
        await rig.admin.delete(KEYS.events)
        await rig.expect_recovery()
        assert rig.server.parts.follower.resyncs <= 1


async def test_removed_record_is_restored_by_the_write_that_notices_it(redis: RedisProcess, policy: Policy) -> None:
    async with open_rig(redis, policy, lease={"sweep_interval_ms": 60_000}) as rig:
        for call in ("update", "unregister"):
            await rig.admin.hdel(KEYS.records, SERVICES[0])
            if call == "update":
                await rig.server.stub.RegisterService(
                    pb.RegisterServiceRequest(service=small_service(SERVICES[0], version="2.0.0")),
                    metadata=rig.metadata,
                    timeout=TIMEOUT,
                )
                assert await rig.admin.hexists(KEYS.records, SERVICES[0])
            else:
                await rig.server.stub.UnregisterService(
                    pb.UnregisterServiceRequest(name=SERVICES[0]), metadata=rig.metadata, timeout=TIMEOUT
                )
        assert SERVICES[0] not in rig.server.parts.replica.records


async def test_without_repairs_a_removed_record_is_an_unregistered_service(redis: RedisProcess, policy: Policy) -> None:
    async with open_rig(redis, policy, redis={"repair": False}) as rig:
        replica = rig.server.parts.replica
        await rig.admin.hdel(KEYS.records, SERVICES[0])
        await until(lambda: SERVICES[0] not in replica.records)
        # The lease of the removed record remains until it ends, and would hide that another one is missing.
        await rig.admin.zrem(KEYS.leases, *SERVICES[:2])
        await until_async(lambda: has_lease(rig, SERVICES[1]))
        assert set(replica.records) == set(SERVICES[1:])


async def has_lease(rig: Rig, name: str) -> bool:
    return await rig.admin.zscore(KEYS.leases, name) is not None
