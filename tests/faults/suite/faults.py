"""Faults with a standalone Redis: of registry processes, Redis and the network, and client overload."""

import asyncio
import random
import resource
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from registry_server.runtime.tasks import cancel
from tests.faults.suite.fault import fault
from tests.faults.suite.history import Promises
from tests.faults.suite.load import Load
from tests.faults.suite.proxy import Proxy
from tests.faults.suite.stage import PROCESSES, Stage


@fault("none", "no fault: tests the suite itself")
async def none(_stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    yield


# The registry.

_FAILED_READS = Promises(reads_succeed=False)


@fault(
    "registry-killed",
    "`kill -9` of a registry process, which is started again",
    group="registry",
    promises=_FAILED_READS,
)
async def registry_killed(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    process = stage.processes[rng.randrange(PROCESSES)]
    await process.kill()
    yield
    await process.start()


@fault("registry-paused", "`SIGSTOP` of a registry process", group="registry", promises=_FAILED_READS)
async def registry_paused(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    process = stage.processes[rng.randrange(PROCESSES)]
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


# Redis.


@fault("redis-killed", "`kill -9` of Redis, which is started again with its append-only file", group="redis")
async def redis_killed(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    stage.servers[0].kill()
    yield
    await stage.servers[0].restart()


@fault(
    "redis-paused",
    "`SIGSTOP` of Redis: connections stay open, but Redis does not respond",
    group="redis",
    flags=("--redis.timeout-ms=500",),  # shorter than the fault
)
async def redis_paused(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    stage.servers[0].pause()
    try:
        yield
    finally:
        stage.servers[0].resume()


# Data and errors of Redis.


@fault("flushall", "`FLUSHALL`: Redis is emptied, and the registry restores its data", group="data")
async def flushall(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    await stage.run_redis_command("FLUSHALL")
    yield


@fault(
    "flushall-unrepaired",
    "`FLUSHALL` with `redis.repair` false",
    flags=("--redis.repair=false",),
    promises=Promises(may_lose=True, may_skip=True),
)
async def flushall_unrepaired(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    await stage.run_redis_command("FLUSHALL")
    yield


@fault(
    "stream-trimmed",
    "the event stream is repeatedly trimmed to its newest entry or to none",
    group="data",
    promises=Promises(may_skip=True),
)
async def stream_trimmed(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    async def trim() -> None:
        while True:
            await stage.run_redis_command("XTRIM", stage.keys.events, "MAXLEN", rng.randrange(2))
            await asyncio.sleep(rng.uniform(0, 0.1))

    async with _during(trim()):
        yield


@fault("out-of-memory", "`maxmemory` is reached: Redis returns `OOM`", group="data")
async def out_of_memory(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    await stage.run_redis_command("CONFIG", "SET", "maxmemory", "1")
    yield
    await stage.run_redis_command("CONFIG", "SET", "maxmemory", "0")


@fault("disk-full", "the append-only file cannot grow: Redis returns `MISCONF`", group="redis")
async def disk_full(stage: Stage, _load: Load, _rng: random.Random) -> AsyncIterator[None]:
    pid = stage.servers[0].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    yield
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@fault(
    "clock-jump",
    "the clock of Redis jumps forwards or backwards by half a minute or an hour, and returns",
    group="clock",
    needs={"clock": True},
    promises=Promises(clock_is_correct=False),
)
async def clock_jump(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    stage.set_clock(rng.choice((-3600, -30, 30, 3600)))
    yield
    stage.set_clock(0)


# The network: between the registry and Redis, and between clients and the registry.

_LINKED = {"linked": True}


def _some_links(stage: Stage, rng: random.Random) -> list[Proxy]:
    return stage.links if rng.random() < 0.5 else [rng.choice(stage.links)]


@fault(
    "link-cut",
    "connections of one or both processes to Redis are reset, including new ones",
    group="link",
    needs=_LINKED,
)
async def link_cut(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, rng)
    for link in links:
        link.refuses = True
        link.cut()
    yield
    for link in links:
        link.refuses = False


@fault(
    "link-delayed",
    "traffic between one or both processes and Redis is delayed by up to 0.3 s",
    group="link",
    needs=_LINKED,
)
async def link_delayed(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, rng)
    for link in links:
        link.delay = rng.uniform(0.02, 0.3)
    yield
    for link in links:
        link.delay = 0


@fault(
    "link-half-open",
    "connections of one or both processes to Redis discard all bytes; then they are reset",
    group="link",
    needs=_LINKED,
)
async def link_half_open(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, rng)
    for link in links:
        link.swallows = True
    yield
    for link in links:
        link.swallows = False
        link.cut()


@fault(
    "link-throttled",
    "connections of one or both processes to Redis are limited to 8 to 64 KiB per second",
    group="link",
    needs=_LINKED,
)
async def link_throttled(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, rng)
    for link in links:
        link.rate = rng.randrange(8, 64) * 1024
    yield
    for link in links:
        link.rate = 0


@fault(
    "clients-cut",
    "connections of clients and watchers are repeatedly reset",
    group="clients",
    needs={"fronted": True},
    promises=Promises(reads_succeed=False),
)
async def clients_cut(stage: Stage, _load: Load, rng: random.Random) -> AsyncIterator[None]:
    async def cut() -> None:
        while True:
            rng.choice(stage.fronts).cut()
            await asyncio.sleep(rng.uniform(0.05, 0.3))

    async with _during(cut()):
        yield


# Many clients, and misbehaving ones.


@fault("crowd", "1,000 services register again at the same time, with 1,000 watchers", promises=_FAILED_READS)
async def crowd(_stage: Stage, load: Load, _rng: random.Random) -> AsyncIterator[None]:
    load.pace = 10  # each change causes a thousand messages
    names = [f"crowd-{i}" for i in range(1000)]
    await load.register_at_once(names)
    await load.crowd.join(1000)
    await load.register_at_once(names)
    yield


@fault(
    "reader-never-reads",
    "watchers over gRPC and SSE stop reading during a large number of writes, and resume later",
    flags=("--watch.buffer-bytes=131072",),
)
async def reader_never_reads(stage: Stage, load: Load, _rng: random.Random) -> AsyncIterator[None]:
    await load.crowd.join(4, asleep=True)
    async with AsyncExitStack() as stack:
        for process in stage.processes:
            host, port = process.http_address.split(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1)
            stack.callback(writer.transport.abort)
            writer.write(b"GET /api/v1/registry/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with _during(load.write_large_services()):
            yield
    load.crowd.wake()


@asynccontextmanager
async def _during(job: Any) -> AsyncIterator[None]:
    """Run a job within the block and raise its error."""
    task = asyncio.create_task(job)
    try:
        yield
        if task.done():
            task.result()
    finally:
        await cancel([task])  # repeats the cancellation, which the Redis client can swallow
