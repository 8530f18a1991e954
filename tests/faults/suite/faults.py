"""The catalogue: what can go wrong, each as a context that begins it and, on leaving, ends it."""

import asyncio
import random
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import ResponseError

from tests.faults.suite.clients import Load
from tests.faults.suite.history import Promises
from tests.faults.suite.stage import PATIENCE, PROCESSES, Deployment, Stage
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
    """

    name: str
    summary: str
    over: Over
    deployment: Deployment = "alone"
    needs: dict[str, bool] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    promises: Promises = field(default_factory=Promises)


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


@fault("registry-killed", "`kill -9` of a registry process, which is started again", promises=_OF_A_PROCESS)
async def _registry_killed(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    process = stage.processes[chance.randrange(PROCESSES)]
    await process.kill()
    yield
    await process.start()


@fault("registry-paused", "`SIGSTOP` of a registry process", promises=_OF_A_PROCESS)
async def _registry_paused(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    process = stage.processes[chance.randrange(PROCESSES)]
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


# Redis.


@fault("redis-killed", "`kill -9` of Redis, which is started again with its append-only file")
async def _redis_killed(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].kill()
    yield
    await stage.servers[0].restart()


@fault("redis-paused", "`SIGSTOP` of Redis: connections stay open and nothing answers")
async def _redis_paused(stage: Stage, _load: Load, _chance: random.Random) -> AsyncIterator[None]:
    stage.servers[0].pause()
    try:
        yield
    finally:
        stage.servers[0].resume()


@fault(
    "stream-trimmed",
    "the event stream is cut down to its newest entry, again and again",
    promises=Promises(may_skip=True),
)
async def _stream_trimmed(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    async def trim() -> None:
        while True:
            await stage.ask("XTRIM", stage.keys.events, "MAXLEN", chance.randrange(2))
            await asyncio.sleep(chance.uniform(0, 0.1))

    async with _during(trim()):
        yield


# The network between the registry and Redis.

_LINKED = {"linked": True}


def _some_links(stage: Stage, chance: random.Random) -> list[Any]:
    return stage.links if chance.random() < 0.5 else [chance.choice(stage.links)]


@fault("link-cut", "connections to Redis are reset, and new ones too, of one process or of both", needs=_LINKED)
async def _link_cut(stage: Stage, _load: Load, chance: random.Random) -> AsyncIterator[None]:
    links = _some_links(stage, chance)
    for link in links:
        link.refuses = True
        link.cut()
    yield
    for link in links:
        link.refuses = False


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
