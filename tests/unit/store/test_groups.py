"""Group commit: one call of the script commits many changes independently."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ossa.registry.v1.event_pb2 import EventReason, EventType
from registry_server.errors import StoreUnavailable
from registry_server.runtime.tasks import cancel
from registry_server.store import MAX_COMMITS_PER_GROUP, Conflict, Position, RedisStore, StoreLimits
from registry_server.store.groups import Commit
from registry_server.store.lua import Scripts
from tests.support.redis_process import RedisProcess
from tests.support.samples import small_service

TIMEOUT = 20.0


@pytest.fixture
async def store(redis: RedisProcess, limits: StoreLimits) -> AsyncIterator[RedisStore]:
    opened = RedisStore(redis.url, timeout=1.0, limits=limits)
    await opened.open()
    yield opened
    await opened.close()


async def write_service(store: RedisStore, epoch: str, name: str, *, expected: int = 0) -> Any:
    return await store.writer.write_service(
        small_service(name),
        seen=Position(epoch, 0),
        expected=expected,
        type=EventType.EVENT_TYPE_SERVICE_REGISTERED,
        reason=EventReason.EVENT_REASON_CLIENT_REQUEST,
        ttl=60,
        renew=True,
    )


async def test_simultaneous_commits_share_script_calls_in_order(store: RedisStore) -> None:
    epoch = (await store.reader.resolve_head()).epoch
    revisions = await asyncio.gather(*(write_service(store, epoch, f"a{i}") for i in range(100)))
    assert revisions == list(range(1, 101))
    assert store.counters.scripts["commit"].ended.total() < 5
    assert store.counters.commits == {"committed": 100}


@pytest.mark.store_limits(commit_gather_seconds=3600.0)
async def test_full_group_is_sent_while_the_loop_is_busy(store: RedisStore) -> None:
    async def keep_busy() -> None:
        while True:
            time.sleep(0.001)  # noqa: ASYNC251 - keeps the event loop busy
            await asyncio.sleep(0)

    epoch = (await store.reader.resolve_head()).epoch
    busy = asyncio.create_task(keep_busy())
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*(write_service(store, epoch, f"a{i}") for i in range(MAX_COMMITS_PER_GROUP)))
    await cancel([busy])


async def test_refused_commit_does_not_affect_others(store: RedisStore) -> None:
    epoch = (await store.reader.resolve_head()).epoch
    outcomes = await asyncio.gather(
        write_service(store, epoch, "a"),
        write_service(store, epoch, "a"),
        write_service(store, epoch, "b", expected=7),
        write_service(store, epoch, "c"),
    )
    assert list(outcomes) == [1, Conflict(1, 1), Conflict(1, 0), 2]


async def test_cancelled_caller_does_not_affect_others(store: RedisStore) -> None:
    epoch = (await store.reader.resolve_head()).epoch
    tasks = [asyncio.create_task(write_service(store, epoch, name)) for name in ("a", "b", "c")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    assert list(await asyncio.gather(tasks[0], tasks[2])) == [1, 3]


@pytest.mark.own_redis
async def test_all_waiting_commits_fail_if_redis_is_down(store: RedisStore, redis: RedisProcess) -> None:
    epoch = (await store.reader.resolve_head()).epoch
    redis.kill()
    async with asyncio.timeout(TIMEOUT):
        outcomes = await asyncio.gather(
            *(write_service(store, epoch, f"a{i}") for i in range(500)), return_exceptions=True
        )
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert store.waiting_commands == 0
    assert store.counters.scripts["commit"].ended.total() == 1


def test_commit_has_as_many_fields_as_the_script_takes() -> None:
    each = re.search(r"FIRST, EACH = 2, (\d+)", Scripts().sources["commit"])
    assert each is not None
    assert len(Commit._fields) == int(each[1])
