"""Faults of a registry on one Redis: of its processes, of Redis, of the network, and clients that ask for much."""

import asyncio
import random
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from registry_server.tasks import cancel
from tests.faults.suite.fault import fault
from tests.faults.suite.history import Promises
from tests.faults.suite.load import Load
from tests.faults.suite.proxy import Proxy
from tests.faults.suite.stage import PROCESSES, Stage


@fault("none", "nothing: the suite itself is looked at")
async def none(_stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    yield


# The registry.

_OF_A_PROCESS = Promises(reads_go_on=False)


@fault(
    "registry-killed",
    "`kill -9` of a registry process, which is started again",
    group="registry",
    promises=_OF_A_PROCESS,
)
async def registry_killed(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    process = stage.processes[chance.randrange(PROCESSES)]
    await process.kill()
    yield
    await process.start()


@fault("registry-paused", "`SIGSTOP` of a registry process", group="registry", promises=_OF_A_PROCESS)
async def registry_paused(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    process = stage.processes[chance.randrange(PROCESSES)]
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


# Redis.


@fault("redis-killed", "`kill -9` of Redis, which is started again with its append-only file", group="redis")
async def redis_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].kill()
    yield
    await stage.servers[0].restart()


@fault(
    "redis-paused",
    "`SIGSTOP` of Redis: connections stay open and nothing answers",
    group="redis",
    flags=("--redis.timeout-ms=500",),  # shorter than the fault
)
async def redis_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].pause()
    try:
        yield
    finally:
        stage.servers[0].resume()


# What is in Redis, and what it says.


@fault("flushall", "`FLUSHALL`: Redis is empty, and is given back what it had", group="data")
async def flushall(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    await stage.ask("FLUSHALL")
    yield


@fault(
    "flushall-unrepaired",
    "`FLUSHALL` with `redis.repair` false",
    flags=("--redis.repair=false",),
    promises=Promises(may_lose=True, may_skip=True),
)
async def flushall_unrepaired(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    await stage.ask("FLUSHALL")
    yield


@fault(
    "stream-trimmed",
    "the event stream is cut down to its newest entry or to none, again and again",
    group="data",
    promises=Promises(may_skip=True),
)
async def stream_trimmed(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    async def trim() -> None:
        while True:
            await stage.ask("XTRIM", stage.keys.events, "MAXLEN", chance.randrange(2))
            await asyncio.sleep(chance.uniform(0, 0.1))

    async with _during(trim()):
        yield


@fault("out-of-memory", "`maxmemory` is reached: Redis answers `OOM`", group="data")
async def out_of_memory(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    await stage.ask("CONFIG", "SET", "maxmemory", "1")
    yield
    await stage.ask("CONFIG", "SET", "maxmemory", "0")


@fault("disk-full", "the append-only file takes no more bytes: Redis answers `MISCONF`", group="redis")
async def disk_full(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
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
async def clock_jump(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    stage.set_clock(chance.choice((-3600, -30, 30, 3600)))
    yield
    stage.set_clock(0)


# The network: between the registry and Redis, and between clients and the registry.

_LINKED = {"linked": True}


def _some_links(stage: Stage, chance: random.Random) -> list[Proxy]:
    return stage.links if chance.random() < 0.5 else [chance.choice(stage.links)]


@fault("link-cut", "connections to Redis, of one process or both, are reset, new ones too", group="link", needs=_LINKED)
async def link_cut(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
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
async def link_delayed(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
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
async def link_half_open(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
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
async def link_throttled(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
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
async def clients_cut(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    async def cut() -> None:
        while True:
            chance.choice(stage.fronts).cut()
            await asyncio.sleep(chance.uniform(0.05, 0.3))

    async with _during(cut()):
        yield


# Very many clients, and bad ones.


@fault("crowd", "1,000 watchers, who are told of 1,000 services that register again at once", promises=_OF_A_PROCESS)
async def crowd(_stage: Stage, load: Load, _chance: random.Random) -> AsyncIterator[None]:
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
async def reader_never_reads(stage: Stage, load: Load, _chance: random.Random) -> AsyncIterator[None]:
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


@asynccontextmanager
async def _during(job: Any) -> AsyncIterator[None]:
    """Has something done meanwhile; what it raises is raised."""
    task = asyncio.create_task(job)
    try:
        yield
        if task.done():
            task.result()
    finally:
        await cancel([task])  # once is not enough for who asks Redis
