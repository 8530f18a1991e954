"""Redis loses what was acknowledged; the processes of the registry, which remember it, give it back."""

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
from registry_server.store import RedisStore
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
MANY = 4000  # services, of which a repair takes a while
TIMEOUT = 30  # seconds


class Member:
    """A process of the registry, with a client and a subscriber of it."""

    def __init__(self, process: ServerProcess, stub: "RegistryServiceAsyncStub", subscriber: Subscriber) -> None:
        self.process = process
        self.stub = stub
        self.subscriber = subscriber

    def repairs(self) -> list[dict[str, Any]]:
        """Lines of its log that tell of a repair."""
        return [line for line in self.process.log if line.get("event") == REPAIRED]

    async def register(self, name: str) -> "Service":
        request = pb.RegisterServiceRequest(service=small_service(name))
        return (await self.stub.RegisterService(request)).service

    async def services(self) -> dict[str, "Service"]:
        """All that it holds."""
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
    """Processes of one registry."""
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            process = await stack.enter_async_context(ServerProcess(f"--redis.url={redis.url}", *flags))
            _, stub = await stack.enter_async_context(connected(process.grpc_address))
            found.append(Member(process, stub, await stack.enter_async_context(following(stub))))
        yield found


class Clients:
    """Clients that register, update and unregister services of their own, and remember what they were told."""

    def __init__(self, stubs: "list[RegistryServiceAsyncStub]") -> None:
        self._stubs = stubs
        self.state: dict[str, int | None] = {}
        """Service to its revision as it was acknowledged, ``None`` if it is removed; not those that are in doubt."""
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
                if error.code() != grpc.StatusCode.NOT_FOUND:  # the one before it was in doubt
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


async def nothing_is_lost(each: list[Member], subject: Clients) -> None:
    """Everything that was acknowledged holds, in all processes and for all subscribers."""
    revision = max([await member.position() for member in each])
    for member in each:
        await member.subscriber.reached(revision)
        services = await agreed(member)
        for name, acknowledged in subject.state.items():
            held = services.get(name)
            assert (held.revision if held else None) == acknowledged, name


async def agreed(member: Member) -> "dict[str, Service]":
    """What a process holds once its subscriber holds the same: a call that its client gave up may still change it."""
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


def assert_told_all(member: Member) -> None:
    """Its subscriber was told of every change, once, over one stream, and of no difference."""
    events = member.subscriber.events
    assert [event.revision for event in events] == list(range(1, len(events) + 1))
    assert not [event for event in events if event.reason == RESYNC]
    assert member.subscriber.streams == 1


@pytest.mark.parametrize(
    ("count", "flags"), [pytest.param(2, (), id="processes"), pytest.param(1, ("--workers=2",), id="workers")]
)
async def test_emptied_under_load_it_loses_nothing_and_goes_on_with_its_history(
    redis: RedisProcess, count: int, flags: tuple[str, ...]
) -> None:
    async with members(redis, count, *flags) as each:
        async with clients(each) as subject:
            for round_ in range(1, 3):
                await more(subject, 300)
                await flush(redis)
                await until(partial(has_repaired, each, round_))
                await more(subject, 100)
        await nothing_is_lost(each, subject)
        for member in each:
            assert_told_all(member)
        assert {line["outcome"] for member in each for line in member.repairs()} == {"continued"}


async def test_who_beats_is_not_told_that_its_service_is_unknown(redis: RedisProcess) -> None:
    async with members(redis, 1) as [member]:
        await member.register("agent")
        await flush(redis)
        beat = await member.stub.Heartbeat(pb.HeartbeatRequest(names=["agent", "nobody"]))
        assert (beat.renewed_count, list(beat.unknown_names)) == (1, ["nobody"])
        assert len(member.repairs()) == 1


class Copy:
    """The files of Redis as they were once."""

    def __init__(self, redis: RedisProcess, directory: Path) -> None:
        self._redis, self._directory, self._copy = redis, directory, directory.with_name("copy")

    def take(self) -> None:
        shutil.copytree(self._directory, self._copy)

    @asynccontextmanager
    async def restored(self) -> AsyncIterator[RedisProcess]:
        """Redis is killed and comes back as it was; first elsewhere, where somebody else may write to it."""
        self._redis.kill()
        await self._redis.stop()
        shutil.rmtree(self._directory)
        shutil.copytree(self._copy, self._directory)
        async with RedisProcess(self._directory) as elsewhere:
            yield elsewhere
        await self._redis.start()


async def test_restored_from_an_older_copy_it_goes_on_with_its_history(redis: RedisProcess, tmp_path: Path) -> None:
    copy = Copy(redis, tmp_path / "redis")
    async with members(redis, 2) as each:
        async with clients(each) as subject:
            await more(subject, 200)
            copy.take()
            await more(subject, 300)
            async with copy.restored():
                pass
            await more(subject, 100)
        await nothing_is_lost(each, subject)
        for member in each:
            assert_told_all(member)
        assert {line["outcome"] for member in each for line in member.repairs()} == {"continued"}


async def test_what_was_written_to_an_older_copy_is_kept_beside_what_it_lacked(
    redis: RedisProcess, tmp_path: Path
) -> None:
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
            await other.write_services(*(f"other-{i}" for i in range(300)))  # more than was lost
        await until(lambda: all("other-299" in member.subscriber.state for member in each))
        for member, count in zip(each, seen, strict=True):
            told = member.subscriber.events[count:]
            assert {(event.type, event.reason) for event in told} == {(REGISTERED, RESYNC)}
            assert sorted(event.service.name for event in told) == sorted(f"other-{i}" for i in range(300))
        await each[0].register("next")
        await nothing_is_lost(each, subject)
        assert [line["outcome"] for member in each for line in member.repairs()].count("merged") == 1


async def settled(each: Sequence[Member]) -> int:
    """Waits until nothing is written any more, as a call may be that its client has left; gives the newest revision."""
    newest = -1
    while newest < (newest := max([await member.position() for member in each])):
        await asyncio.sleep(0.5)
    return newest


async def fill(redis: RedisProcess) -> None:
    """Has many services be registered, past the processes."""
    store = RedisStore(redis.url, timeout=30.0)
    await store.open()
    epoch = (await store.reader.read_position()).epoch
    await asyncio.gather(
        *(
            store.writer.write_service(
                small_service(f"many-{i}", group="many"),
                epoch=epoch,
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


async def in_the_middle_of_a_repair(redis: RedisProcess, each: list[Member]) -> Member:
    """Stops Redis in the middle of a repair; gives the process whose turn it is."""
    async with Redis.from_url(redis.url) as client, asyncio.timeout(60):
        await client.flushall()
        while not await client.hget("ossa:registry:repair", "plan"):
            await asyncio.sleep(0.001)
        redis.pause()
    assert not any(member.repairs() for member in each), "it has ended already"
    [elected] = [m for m in each if any("repairing" in line["event"] for line in m.process.log)]
    return elected


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_repair_whose_process_ends_or_stands_still_is_ended_by_another(
    redis: RedisProcess, how: signal.Signals
) -> None:
    async with AsyncExitStack() as stack:
        each = await stack.enter_async_context(members(redis, 2))
        await fill(redis)
        for member in each:
            await member.subscriber.reached(MANY)
        elected = await in_the_middle_of_a_repair(redis, each)
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
            assert_told_all(elected)
        await other.subscriber.reached(after.revision)
        assert_told_all(other)
        assert len(await other.services()) == MANY + 1
        async with Redis.from_url(redis.url) as client:
            assert await client.hlen("ossa:registry:records") == MANY + 1
            assert not await client.exists("ossa:registry:repair")


@pytest.mark.parametrize("written", [False, True], ids=["nothing written", "something written"])
async def test_a_process_that_begins_with_an_emptied_redis_does_not_win(
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


async def test_switched_off_what_redis_lost_is_told_as_lost(redis: RedisProcess) -> None:
    async with members(redis, 1, "--redis.repair=false") as [member]:
        await member.register("agent")
        await flush(redis)
        await until(lambda: not member.subscriber.state)
        assert not await member.services()
