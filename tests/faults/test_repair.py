"""Redis loses acknowledged writes, and the registry processes restore them from memory."""

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from redis.asyncio import Redis

from ossa.registry.v1 import registry_service_pb2 as pb
from registry_server.runtime.tasks import cancel
from registry_server.store import Position, RedisStore
from tests.support.followers import CLIENT_REQUEST, REGISTERED, RESYNC, writing
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service
from tests.support.server import ServerProcess, connected
from tests.support.traffic import reason_of
from tests.support.waiting import until
from tests.support.watching import Subscriber, following

if TYPE_CHECKING:
    from ossa.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from ossa.registry.v1.service_pb2 import Service

REPAIRED = "store repaired from memory"
MANY = 4000  # services, so that a repair takes some time
TIMEOUT = 30  # seconds


class Member:
    """A registry process with a client and a subscriber."""

    def __init__(self, process: ServerProcess, stub: "RegistryServiceAsyncStub", subscriber: Subscriber) -> None:
        self.process = process
        self.stub = stub
        self.subscriber = subscriber

    def repairs(self) -> list[dict[str, Any]]:
        """Return the log records of repairs."""
        return [line for line in self.process.log if line.get("event") == REPAIRED]

    async def register(self, name: str) -> "Service":
        request = pb.RegisterServiceRequest(service=small_service(name))
        return (await self.stub.RegisterService(request)).service

    async def services(self) -> dict[str, "Service"]:
        """Return all services of the process."""
        found: dict[str, Service] = {}
        token = ""
        while True:
            page = await self.stub.DiscoverServices(pb.DiscoverServicesRequest(page_size=1000, page_token=token))
            found.update({service.name: service for service in page.services})
            token = page.next_page_token
            if not token:
                return found

    async def position(self) -> int:
        return (await self.stub.GetRegistryHealth(pb.GetRegistryHealthRequest())).revision


@asynccontextmanager
async def members(redis: RedisProcess, count: int, *flags: str) -> AsyncIterator[list[Member]]:
    """Run several processes of one registry."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            process = await stack.enter_async_context(ServerProcess(f"--redis.url={redis.url}", *flags))
            _, stub = await stack.enter_async_context(connected(process.grpc_address))
            found.append(Member(process, stub, await stack.enter_async_context(following(stub))))
        yield found


class Clients:
    """Clients that register, update and unregister separate services, and record the responses."""

    def __init__(self, stubs: "list[RegistryServiceAsyncStub]") -> None:
        self._stubs = stubs
        self.state: dict[str, int | None] = {}
        """Maps services to their acknowledged revision, or ``None`` if removed; without unknown outcomes."""
        self.count = 0
        self.refused: list[str] = []

    async def run(self, number: int) -> None:
        stub, i = self._stubs[number % len(self._stubs)], 0
        while True:
            i += 1
            name = f"agent-{number}-{i % 20}"
            removes = i % 3 == 0 and self.state.get(name) is not None
            self.state.pop(name, None)
            try:
                if removes:
                    await stub.UnregisterService(pb.UnregisterServiceRequest(name=name))
                    self.state[name] = None
                else:
                    service = small_service(name, version=f"1.{i}.0")
                    answer = await stub.RegisterService(pb.RegisterServiceRequest(service=service))
                    self.state[name] = answer.service.revision
                self.count += 1
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:  # the previous call had an unknown outcome
                    self.refused.append(reason_of(error))
            await asyncio.sleep(0.002)


@asynccontextmanager
async def clients(each: list[Member], number: int = 6) -> AsyncIterator[Clients]:
    subject = Clients([member.stub for member in each])
    tasks = [asyncio.create_task(subject.run(i)) for i in range(number)]
    try:
        yield subject
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await cancel(tasks)


async def more(subject: Clients, number: int) -> None:
    goal = subject.count + number
    await until(lambda: subject.count >= goal, timeout_seconds=60)


async def assert_nothing_is_lost(each: list[Member], subject: Clients) -> None:
    """Check that all processes and subscribers hold every acknowledged write."""
    revision = max([await member.position() for member in each])
    for member in each:
        await member.subscriber.reached(revision)
        services = await agreed(member)
        for name, acknowledged in subject.state.items():
            held = services.get(name)
            assert (held.revision if held else None) == acknowledged, name


async def agreed(member: Member) -> "dict[str, Service]":
    """Return the services once the subscriber agrees: a cancelled call may still change them."""
    async with asyncio.timeout(TIMEOUT):
        while member.subscriber.state != (services := await member.services()):
            await asyncio.sleep(0.02)
    return services


def has_repaired(each: list[Member], times: int) -> bool:
    return sum(len(member.repairs()) for member in each) >= times


def holds(member: Member, names: set[str]) -> bool:
    return member.subscriber.state.keys() == names


async def flush(redis: RedisProcess) -> None:
    async with Redis.from_url(redis.url) as client:
        await client.flushall()


def assert_received_all(member: Member) -> None:
    """Check that the subscriber received every change once on one stream, without resync events."""
    events = member.subscriber.events
    assert [event.revision for event in events] == list(range(1, len(events) + 1))
    assert not [event for event in events if event.reason == RESYNC]
    assert member.subscriber.streams == 1


@pytest.mark.parametrize(
    ("count", "flags"), [pytest.param(2, (), id="processes"), pytest.param(1, ("--workers=2",), id="workers")]
)
async def test_emptied_redis_is_restored_under_load_and_history_continues(
    redis: RedisProcess, count: int, flags: tuple[str, ...]
) -> None:
    async with members(redis, count, *flags) as each:
        async with clients(each) as subject:
            for round_ in range(1, 3):
                await more(subject, 300)
                await flush(redis)
                await until(partial(has_repaired, each, round_))
                await more(subject, 100)
        await assert_nothing_is_lost(each, subject)
        for member in each:
            assert_received_all(member)
        assert {line["outcome"] for member in each for line in member.repairs()} == {"continued"}


async def test_heartbeat_after_flushall_does_not_report_unknown(redis: RedisProcess) -> None:
    async with members(redis, 1) as [member]:
        await member.register("agent")
        await flush(redis)
        beat = await member.stub.Heartbeat(pb.HeartbeatRequest(names=["agent", "unknown"]))
        assert (beat.renewed_count, list(beat.unknown_names)) == (1, ["unknown"])
        assert len(member.repairs()) == 1


async def test_instance_and_draining_survive_the_loss_of_redis(redis: RedisProcess) -> None:
    async with members(redis, 2) as [first, second]:
        for instance_id in ("old", "new"):
            service = small_service("agent", instance_id=instance_id)
            await first.stub.RegisterService(pb.RegisterServiceRequest(service=service))
        draining = pb.Lease(name="agent", instance_id="new", draining=True)
        await second.stub.Heartbeat(pb.HeartbeatRequest(leases=[draining]))
        before = await agreed(first)
        await flush(redis)
        leases = [pb.Lease(name="agent", instance_id="old"), pb.Lease(name="agent", instance_id="new")]
        beat = await second.stub.Heartbeat(pb.HeartbeatRequest(leases=leases))
        assert beat == pb.HeartbeatResponse(renewed_count=1, superseded_names=["agent"])
        assert has_repaired([first, second], 1)
        for member in (first, second):
            assert await agreed(member) == before
            assert_received_all(member)


class Copy:
    """A copy of the data directory of Redis."""

    def __init__(self, redis: RedisProcess, directory: Path) -> None:
        self._redis, self._directory, self._copy = redis, directory, directory.with_name("copy")

    def take(self) -> None:
        shutil.copytree(self._directory, self._copy)

    @asynccontextmanager
    async def restored(self) -> AsyncIterator[RedisProcess]:
        """Kill Redis and restart it from the copy, first on another port for other writers."""
        self._redis.kill()
        await self._redis.stop()
        shutil.rmtree(self._directory)
        shutil.copytree(self._copy, self._directory)
        async with RedisProcess(self._directory) as elsewhere:
            yield elsewhere
        await self._redis.start()


async def test_history_continues_after_restoring_an_older_backup(redis: RedisProcess, tmp_path: Path) -> None:
    copy = Copy(redis, tmp_path / "redis")
    async with members(redis, 2) as each:
        async with clients(each) as subject:
            await more(subject, 200)
            copy.take()
            await more(subject, 300)
            async with copy.restored():
                pass
            await more(subject, 100)
        await assert_nothing_is_lost(each, subject)
        for member in each:
            assert_received_all(member)
        assert {line["outcome"] for member in each for line in member.repairs()} == {"continued"}


async def test_writes_to_an_older_backup_are_merged_with_lost_writes(redis: RedisProcess, tmp_path: Path) -> None:
    copy = Copy(redis, tmp_path / "redis")
    async with members(redis, 2) as each:
        async with clients(each) as subject:
            await more(subject, 100)
            copy.take()
            await more(subject, 200)
        before = await settled(each)
        for member in each:
            await member.subscriber.reached(before)
        seen = [len(member.subscriber.events) for member in each]
        async with copy.restored() as elsewhere, writing(elsewhere.url) as other:
            await other.write_services(*(f"other-{i}" for i in range(300)))  # more writes than were lost
        await until(lambda: all("other-299" in member.subscriber.state for member in each))
        for member, count in zip(each, seen, strict=True):
            events = member.subscriber.events[count:]
            assert {(event.type, event.reason) for event in events} == {(REGISTERED, RESYNC)}
            assert sorted(event.service.name for event in events) == sorted(f"other-{i}" for i in range(300))
        await each[0].register("next")
        await assert_nothing_is_lost(each, subject)
        assert [line["outcome"] for member in each for line in member.repairs()].count("merged") == 1


async def settled(each: Sequence[Member]) -> int:
    """Wait until no more writes arrive, for example from cancelled calls, and return the newest revision."""
    newest = -1
    while newest < (newest := max([await member.position() for member in each])):
        await asyncio.sleep(0.5)
    return newest


async def fill(redis: RedisProcess) -> None:
    """Write many services directly to the store."""
    store = RedisStore(redis.url, timeout=30.0)
    await store.open()
    epoch = (await store.reader.read_position()).epoch
    await asyncio.gather(
        *(
            store.writer.write_service(
                small_service(f"many-{i}", group="many"),
                seen=Position(epoch, 0),
                expected=0,
                type=REGISTERED,
                reason=CLIENT_REQUEST,
                ttl=300,
                renew=True,
            )
            for i in range(MANY)
        )
    )
    await store.close()


async def pause_during_a_repair(redis: RedisProcess, each: list[Member]) -> Member:
    """Pause Redis during a repair and return the elected process."""
    async with Redis.from_url(redis.url) as client, asyncio.timeout(60):
        await client.flushall()
        while not await client.hget("ossa:registry:repair", "plan"):
            await asyncio.sleep(0.001)
        redis.pause()
    assert not any(member.repairs() for member in each), "the repair is already complete"
    [elected] = [m for m in each if any("repairing" in line["event"] for line in m.process.log)]
    return elected


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_repair_of_a_killed_or_paused_process_is_completed_by_another(
    redis: RedisProcess, how: signal.Signals
) -> None:
    async with AsyncExitStack() as stack:
        each = await stack.enter_async_context(members(redis, 2))
        await fill(redis)
        for member in each:
            await member.subscriber.reached(MANY)
        elected = await pause_during_a_repair(redis, each)
        [other] = [member for member in each if member is not elected]
        elected.process.signal(how)
        redis.resume()
        await until(lambda: bool(other.repairs()))
        assert other.repairs()[0]["outcome"] == "continued"
        assert len(await other.services()) == MANY
        after = await other.register("after")
        assert after.revision == MANY + 1
        if how == signal.SIGSTOP:
            elected.process.signal(signal.SIGCONT)
            await elected.subscriber.reached(after.revision)
            assert_received_all(elected)
        await other.subscriber.reached(after.revision)
        assert_received_all(other)
        assert len(await other.services()) == MANY + 1
        async with Redis.from_url(redis.url) as client:
            assert await client.hlen("ossa:registry:records") == MANY + 1
            assert not await client.exists("ossa:registry:repair")


@pytest.mark.parametrize("written", [False, True], ids=["nothing written", "something written"])
async def test_process_started_on_an_emptied_redis_does_not_prevent_repair(
    redis: RedisProcess,
    written: bool,  # noqa: FBT001
) -> None:
    async with members(redis, 1) as [member]:
        before = [await member.register(f"agent-{i}") for i in range(5)]
        await member.subscriber.reached(5)
        member.process.signal(signal.SIGSTOP)
        await flush(redis)
        async with members(redis, 1) as [fresh]:
            if written:
                await fresh.register("new")
            member.process.signal(signal.SIGCONT)
            names = {f"agent-{i}" for i in range(5)} | ({"new"} if written else set())
            for each in (member, fresh):
                await until(partial(holds, each, names))
            services = await fresh.services()
            assert [services[service.name] for service in before] == before
            assert (await fresh.register("next")).revision == 6
            await member.subscriber.reached(6)
            assert [(event.type, event.service.name) for event in member.subscriber.events[5:6]] == [
                (REGISTERED, "new" if written else "next")
            ]


async def test_without_repair_lost_services_are_reported_as_removed(redis: RedisProcess) -> None:
    async with members(redis, 1, "--redis.repair=false") as [member]:
        await member.register("agent")
        await flush(redis)
        await until(lambda: not member.subscriber.state)
        assert not await member.services()
