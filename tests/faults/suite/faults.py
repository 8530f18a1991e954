"""The catalogue: what can go wrong, each as a context that begins it and, on leaving, ends it."""

import asyncio
import random
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import ResponseError

from tests.faults.suite.clients import Load
from tests.faults.suite.history import Promises
from tests.faults.suite.proxy import Proxy
from tests.faults.suite.stage import COMPILER, PATIENCE, PROCESSES, Deployment, Stage
from tests.support.deployments import SERVICE, client_of, linked, role_of
from tests.support.redis_process import RedisProcess

Over = Callable[[Stage, Load, random.Random], AbstractAsyncContextManager[None]]
Body = Callable[[Stage, Load, random.Random], AsyncIterator[None]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: What it is called on the command line and in the table.
        summary: What happens, for the table.
        over: Begins it over a run, and ends it.
        deployment: How Redis is run.
        needs: Arguments of ``staged`` that it needs.
        flags: Settings of the registry.
        promises: What holds under it.
        group: What it is done to: of two that are done to one thing, a mix has one. Without, it is in no mix.
    """

    name: str
    summary: str
    over: Over
    deployment: Deployment = "alone"
    needs: dict[str, bool] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    promises: Promises = field(default_factory=Promises)
    group: str = ""


CATALOGUE: dict[str, Fault] = {}


def fault(name: str, summary: str, **more: Any) -> Callable[[Body], Body]:
    """Puts a fault into the catalogue."""

    def add(body: Body) -> Body:
        CATALOGUE[name] = Fault(name, summary, asynccontextmanager(body), **more)
        return body

    return add


@fault("none", "nothing: the suite itself is looked at")
async def _none(_stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    yield


# The registry.

_OF_A_PROCESS = Promises(reads_go_on=False)


@fault(
    "registry-killed",
    "`kill -9` of a registry process, which is started again",
    group="registry",
    promises=_OF_A_PROCESS,
)
async def _registry_killed(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    process = stage.processes[chance.randrange(PROCESSES)]
    await process.kill()
    yield
    await process.start()


@fault("registry-paused", "`SIGSTOP` of a registry process", group="registry", promises=_OF_A_PROCESS)
async def _registry_paused(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    process = stage.processes[chance.randrange(PROCESSES)]
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


# Redis.


@fault("redis-killed", "`kill -9` of Redis, which is started again with its append-only file", group="redis")
async def _redis_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].kill()
    yield
    await stage.servers[0].restart()


@fault(
    "redis-paused",
    "`SIGSTOP` of Redis: connections stay open and nothing answers",
    group="redis",
    flags=("--redis.timeout-ms=500",),  # shorter than the fault
)
async def _redis_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].pause()
    try:
        yield
    finally:
        stage.servers[0].resume()


# What is in Redis, and what it says.


@fault("flushall", "`FLUSHALL`: Redis is empty, and is given back what it had", group="data")
async def _flushall(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    await stage.ask("FLUSHALL")
    yield


@fault(
    "flushall-unrepaired",
    "`FLUSHALL` with `redis.repair` false",
    flags=("--redis.repair=false",),
    promises=Promises(may_lose=True, may_skip=True),
)
async def _flushall_unrepaired(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    await stage.ask("FLUSHALL")
    yield


@fault(
    "stream-trimmed",
    "the event stream is cut down to its newest entry or to none, again and again",
    group="data",
    promises=Promises(may_skip=True),
)
async def _stream_trimmed(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    async def trim() -> None:
        while True:
            await stage.ask("XTRIM", stage.keys.events, "MAXLEN", chance.randrange(2))
            await asyncio.sleep(chance.uniform(0, 0.1))

    async with _during(trim()):
        yield


@fault("out-of-memory", "`maxmemory` is reached: Redis answers `OOM`", group="data")
async def _out_of_memory(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    await stage.ask("CONFIG", "SET", "maxmemory", "1")
    yield
    await stage.ask("CONFIG", "SET", "maxmemory", "0")


@fault("disk-full", "the append-only file takes no more bytes: Redis answers `MISCONF`", group="redis")
async def _disk_full(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    pid = stage.servers[0].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@fault(
    "clock-jump",
    "the clock of Redis jumps by half a minute or an hour, ahead or back, and back again",
    group="clock",
    needs={"clock": True},
    promises=Promises(clock_is_true=False),
)
async def _clock_jump(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    stage.set_clock(chance.choice((-3600, -30, 30, 3600)))
    yield
    stage.set_clock(0)


# The network: between the registry and Redis, and between clients and the registry.

_LINKED = {"linked": True}


def _some_links(stage: Stage, chance: random.Random) -> list[Proxy]:
    return stage.links if chance.random() < 0.5 else [chance.choice(stage.links)]


@fault("link-cut", "connections to Redis, of one process or both, are reset, new ones too", group="link", needs=_LINKED)
async def _link_cut(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, chance)
    for link in links:
        link.refuses = True
        link.cut()
    yield
    for link in links:
        link.refuses = False


@fault(
    "link-delayed",
    "what goes to Redis and back, of one process or both, takes up to 0.3 s",
    group="link",
    needs=_LINKED,
)
async def _link_delayed(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, chance)
    for link in links:
        link.delay = chance.uniform(0.02, 0.3)
    yield
    for link in links:
        link.delay = 0


@fault(
    "link-half-open",
    "connections to Redis, of one process or both, swallow what is sent; then they are reset",
    group="link",
    needs=_LINKED,
)
async def _link_half_open(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, chance)
    for link in links:
        link.swallows = True
    yield
    for link in links:
        link.swallows = False
        link.cut()


@fault(
    "link-throttled",
    "connections to Redis, of one process or both, carry 8 to 64 KiB a second",
    group="link",
    needs=_LINKED,
)
async def _link_throttled(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, chance)
    for link in links:
        link.rate = chance.randrange(8, 64) * 1024
    yield
    for link in links:
        link.rate = 0


@fault(
    "clients-cut",
    "connections of clients and watchers are reset, again and again",
    group="clients",
    needs={"fronted": True},
    promises=Promises(reads_go_on=False),
)
async def _clients_cut(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    async def cut() -> None:
        while True:
            chance.choice(stage.fronts).cut()
            await asyncio.sleep(chance.uniform(0.05, 0.3))

    async with _during(cut()):
        yield


# Very many clients, and bad ones.


@fault("crowd", "1,000 watchers, who are told of 1,000 services that register again at once", promises=_OF_A_PROCESS)
async def _crowd(_stage: Stage, load: Load, _chance: random.Random) -> AsyncIterator[None]:
    load.pace = 10  # each change is a thousand messages
    names = [f"crowd-{i}" for i in range(1000)]
    await load.register_at_once(names)
    await load.crowd.join(1000)
    await load.register_at_once(names)
    yield


@fault(
    "reader-never-reads",
    "watchers over gRPC and SSE that do not read while much is written, and read on later",
    flags=("--watch.buffer-bytes=131072",),
)
async def _reader_never_reads(stage: Stage, load: Load, _chance: random.Random) -> AsyncIterator[None]:
    await load.crowd.join(4, asleep=True)
    async with AsyncExitStack() as stack:
        for process in stage.processes:
            host, port = process.http_address.split(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1)
            stack.callback(writer.transport.abort)
            writer.write(b"GET /api/v1/registry/events HTTP/1.1\r\nHost: registry\r\n\r\n")
        async with _during(load.write_much()):
            yield
    load.crowd.wake()


# Redis under Sentinels.

_CONFIRMED = ("--redis.wait-replicas=1", "--redis.timeout-ms=1000")


@fault(
    "primary-killed",
    "`kill -9` of the primary under Sentinels, with `wait-replicas` 1; it comes back as a replica",
    deployment="sentinel",
    flags=_CONFIRMED,
)
async def _primary_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    primary.kill()
    yield
    await _replaced(stage, primary)
    await primary.restart()
    await _follows(primary)


@fault(
    "primary-paused",
    "`SIGSTOP` of the primary under Sentinels, with `wait-replicas` 1; it wakes up after the failover",
    deployment="sentinel",
    flags=_CONFIRMED,
)
async def _primary_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    primary.pause()
    try:
        yield
        await _replaced(stage, primary)
    finally:
        primary.resume()
    await _follows(primary)


@fault(
    "replica-killed",
    "`kill -9` of one of two replicas, with `wait-replicas` 1",
    deployment="sentinel",
    flags=_CONFIRMED,
)
async def _replica_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replica = next(server for server in stage.servers if server is not primary)
    replica.kill()
    yield
    await replica.restart()
    await linked(replica)


@fault(
    "replica-paused",
    "`SIGSTOP` of one of two replicas, with `wait-replicas` 1",
    deployment="sentinel",
    flags=_CONFIRMED,
)
async def _replica_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replica = next(server for server in stage.servers if server is not primary)
    replica.pause()
    try:
        yield
    finally:
        replica.resume()
    await linked(replica)


@fault(
    "failover-planned",
    "`SENTINEL FAILOVER`, with `wait-replicas` 2 of 2",
    deployment="sentinel",
    flags=("--redis.wait-replicas=2",),
)
async def _failover_planned(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    assert stage.sentinel is not None
    primary = await stage.primary()
    async with asyncio.timeout(PATIENCE), stage.sentinel.client(stage.sentinel.sentinels[0]) as client:
        while True:
            try:
                await client.execute_command("SENTINEL FAILOVER", SERVICE)  # type: ignore[no-untyped-call]
                break
            except ResponseError:  # it has not heard of a replica for a moment
                await asyncio.sleep(0.2)
    yield
    await _replaced(stage, primary)
    for server in stage.servers:
        if await role_of(server) == "slave":
            await linked(server)


@fault(
    "failover-lagging",
    "`kill -9` of the primary under Sentinels when its replicas lack the newest writes, with `wait-replicas` 0",
    deployment="sentinel",
)
async def _failover_lagging(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    primary = await stage.primary()
    replicas = [server for server in stage.servers if server is not primary]
    for replica in replicas:
        async with client_of(replica) as client:
            await client.config_set("masterauth", "wrong")  # by which it cannot come back once it is cut off
    async with client_of(primary) as client:
        await client.execute_command("CLIENT", "KILL", "TYPE", "replica")  # type: ignore[no-untyped-call]
    await asyncio.sleep(chance.uniform(0.1, 0.8))
    primary.kill()
    for replica in replicas:
        async with client_of(replica) as client:
            await client.config_set("masterauth", "")
    yield
    await _replaced(stage, primary)
    await primary.restart()
    await _follows(primary)


async def _replaced(stage: Stage, primary: RedisProcess) -> None:
    assert stage.sentinel is not None
    await stage.sentinel.primary(other_than=primary)


async def _follows(server: RedisProcess) -> None:
    async with asyncio.timeout(PATIENCE):
        while await role_of(server) != "slave":
            await asyncio.sleep(0.05)
    await linked(server)


# A cluster.


async def _replica_takes_over(stage: Stage) -> None:
    async with asyncio.timeout(PATIENCE):
        while await role_of(stage.servers[-1]) != "master":
            await asyncio.sleep(0.05)


@fault(
    "slot-owner-killed",
    "`kill -9` of the node of a cluster that owns the slot, with `wait-replicas` 1; it comes back as a replica",
    deployment="cluster",
    flags=_CONFIRMED,
)
async def _slot_owner_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].kill()
    yield
    await _replica_takes_over(stage)
    await stage.servers[0].restart()
    await _follows(stage.servers[0])


@fault(
    "slot-owner-paused",
    "`SIGSTOP` of that node; it wakes up after the failover",
    deployment="cluster",
    flags=_CONFIRMED,
)
async def _slot_owner_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].pause()
    try:
        yield
        await _replica_takes_over(stage)
    finally:
        stage.servers[0].resume()
    await _follows(stage.servers[0])


@asynccontextmanager
async def _during(job: Any) -> AsyncIterator[None]:
    """Has something done meanwhile; what it raises is raised."""
    task = asyncio.create_task(job)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def possible(fault: Fault) -> str:
    """Why a fault cannot be made on this machine; empty if it can."""
    return "there is no C compiler" if "clock" in fault.needs and COMPILER is None else ""


def mixture(seed: int) -> list[str]:
    """Two or three faults of a Redis alone, chosen by a seed, of which no two are done to the same thing."""
    chance = random.Random(f"mix {seed}")
    groups: dict[str, list[str]] = {}
    for fault in CATALOGUE.values():
        if fault.group and not possible(fault):
            groups.setdefault(fault.group, []).append(fault.name)
    chosen = chance.sample(sorted(groups), chance.choice((2, 3)))
    # Those first that ask something of Redis as they begin: it may be away later.
    return [chance.choice(groups[group]) for group in sorted(chosen, key=lambda group: group != "data")]
