import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from registry_server.errors import StoreUnavailable
from registry_server.health.members import Membership, owner
from registry_server.runtime.tasks import cancel
from registry_server.store import RedisStore
from tests.support.redis_process import RedisProcess

TIMEOUT = 20.0
LONG = 600.0
"""A period that no test waits for."""

IDS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=16), min_size=1, max_size=8, unique=True)
NAMES = st.text("abcXYZ019._-", min_size=1, max_size=32)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not holds():
            await asyncio.sleep(0.005)


# Who checks what.


@given(IDS, NAMES)
def test_every_name_has_one_owner_whatever_the_order_of_the_members(members: list[str], name: str) -> None:
    chosen = owner(name, tuple(members))
    assert chosen in members
    assert owner(name, tuple(sorted(members))) == owner(name, tuple(reversed(members))) == chosen


@given(IDS, st.lists(NAMES, max_size=30), st.data())
def test_a_member_that_leaves_moves_its_own_names_alone(
    members: list[str], names: list[str], data: st.DataObject
) -> None:
    leaving = data.draw(st.sampled_from(members))
    left = tuple(member for member in members if member != leaving)
    for name in names:
        before = owner(name, tuple(members))
        if left and before != leaving:
            assert owner(name, left) == before


def test_names_are_spread_evenly() -> None:
    members = tuple(f"{i:016x}" for i in range(5))
    shares = Counter(owner(f"agent-{i}", members) for i in range(20_000))
    assert sorted(shares) == sorted(members)
    assert 3_700 < min(shares.values()) <= max(shares.values()) < 4_300  # five standard deviations around 4,000


def test_names_of_a_member_that_leaves_are_spread_evenly_too() -> None:
    members = tuple(f"{i:016x}" for i in range(5))
    freed = [name for name in (f"agent-{i}" for i in range(20_000)) if owner(name, members) == members[0]]
    shares = Counter(owner(name, members[1:]) for name in freed)
    assert len(shares) == 4
    assert min(shares.values()) > len(freed) / 4 * 0.8


# The list in Redis.


@asynccontextmanager
async def store_on(process: RedisProcess) -> AsyncIterator[RedisStore]:
    store = RedisStore(process.url, timeout=1.0)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(redis: RedisProcess) -> AsyncIterator[RedisStore]:
    async with store_on(redis) as opened:
        yield opened


@pytest.fixture
async def client(redis: RedisProcess) -> AsyncIterator["Redis"]:
    made = Redis.from_url(redis.url)
    try:
        yield made
    finally:
        await made.aclose()


class Member:
    """A membership that runs, and how often it said that shares have changed."""

    def __init__(self, store: RedisStore, period: float) -> None:
        self.membership = Membership(store, period=period)
        self.changes = 0
        self.task = asyncio.create_task(self.membership.run(self._changed))

    def _changed(self) -> None:
        self.changes += 1

    async def leave(self) -> None:
        await cancel([self.task])

    @property
    def sees(self) -> int:
        return len(self.membership.members)


@asynccontextmanager
async def members(store: RedisStore, count: int, *, period: float) -> AsyncIterator[list[Member]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(Member(store, period))
            stack.push_async_callback(made[-1].leave)
        await eventually(lambda: all(member.sees == count for member in made))
        yield made


async def listed(store: RedisStore, client: Redis) -> set[str]:
    found: Any = await client.zrange(store.keys.members, 0, -1)
    return {each.decode() for each in found}


async def age(store: RedisStore, client: Redis, id_: str, seconds: float) -> None:
    """Lets a member have been silent for some time; negative: it spoke in the future."""
    now, micros = await client.time()
    await client.zadd(store.keys.members, {id_: now * 1000 + micros // 1000 - round(seconds * 1000)})


async def test_nobody_owns_anything_before_the_store_has_told_who_lives(store: RedisStore) -> None:
    membership = Membership(store, period=LONG)
    assert membership.members == ()
    assert not membership.owns("a")


async def test_a_member_alone_owns_everything(store: RedisStore) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        assert alone.membership.members == (alone.membership.id,)
        assert all(alone.membership.owns(f"s{i}") for i in range(100))
        assert alone.changes == 1


async def test_each_name_is_owned_by_one_of_the_members(store: RedisStore, client: Redis) -> None:
    async with members(store, 3, period=1.0) as everyone:
        assert {member.membership.members for member in everyone} == {everyone[0].membership.members}
        assert await listed(store, client) == {member.membership.id for member in everyone}
        owned = [{f"s{i}" for i in range(100) if member.membership.owns(f"s{i}")} for member in everyone]
        assert all(owned)
        assert sum(map(len, owned)) == 100
        assert len(set().union(*owned)) == 100


@pytest.mark.slow
async def test_whoever_leaves_is_off_the_list_at_once_and_owns_nothing(store: RedisStore, client: Redis) -> None:
    async with members(store, 2, period=LONG / 100) as [staying, leaving]:
        await leaving.leave()
        assert await listed(store, client) == {staying.membership.id}
        assert leaving.membership.members == ()
        assert not any(leaving.membership.owns(f"s{i}") for i in range(20))
        staying.membership.refresh()
        await eventually(lambda: staying.sees == 1)
        assert all(staying.membership.owns(f"s{i}") for i in range(20))


async def test_whoever_is_silent_for_a_period_is_gone(store: RedisStore, client: Redis) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        await age(store, client, "nearly", LONG - 30)
        await age(store, client, "silent", LONG + 1)
        alone.membership.refresh()
        await eventually(lambda: alone.sees == 2)
        assert await listed(store, client) == {alone.membership.id, "nearly"}

        await age(store, client, "nearly", LONG + 1)
        alone.membership.refresh()
        await eventually(lambda: alone.sees == 1)
        assert alone.changes == 3


@pytest.mark.slow
async def test_a_member_speaks_often_enough_to_stay(store: RedisStore, client: Redis) -> None:
    async with members(store, 1, period=0.5) as [alone]:
        spoken = set[float]()

        async def look() -> None:
            while len(spoken) < 5:
                score = await client.zscore(store.keys.members, alone.membership.id)
                assert score is not None
                spoken.add(float(score))
                await asyncio.sleep(0.005)

        async with asyncio.timeout(TIMEOUT):
            await look()
        assert alone.changes == 1, "that it lives on is no change"


async def test_after_the_clock_of_redis_was_set_back_whoever_lives_stays_and_whoever_does_not_goes(
    store: RedisStore, client: Redis
) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        # To a clock that was set back, both spoke in the future.
        await age(store, client, alone.membership.id, -2 * LONG)
        await age(store, client, "dead", -2 * LONG)
        alone.membership.refresh()
        await eventually(lambda: alone.sees == 1)

        async def gone() -> None:
            while await listed(store, client) != {alone.membership.id}:
                await asyncio.sleep(0.005)

        async with asyncio.timeout(TIMEOUT):
            await gone()


async def test_a_member_that_was_taken_off_the_list_by_mistake_is_back_when_it_looks(
    store: RedisStore, client: Redis
) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        await client.delete(store.keys.members)
        alone.membership.refresh()

        async def back() -> None:
            while await listed(store, client) != {alone.membership.id}:
                await asyncio.sleep(0.005)

        async with asyncio.timeout(TIMEOUT):
            await back()
        assert alone.changes == 1


@pytest.mark.own_redis
async def test_while_the_store_is_away_shares_stay_as_they_are(
    redis: RedisProcess, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stay, failures = store.writer.announce_member, 0

    async def counted(member: str, period: float) -> list[str]:
        nonlocal failures
        try:
            return await stay(member, period)
        except StoreUnavailable:
            failures += 1
            raise

    monkeypatch.setattr(store.writer, "announce_member", counted)
    async with members(store, 2, period=0.5) as both:
        before = both[0].membership.members
        redis.kill()
        await eventually(lambda: failures >= 4)
        assert [member.membership.members for member in both] == [before, before]
        assert [member.task.done() for member in both] == [False, False]
        await redis.restart()
        await eventually(lambda: all(member.sees == 2 for member in both))


@pytest.mark.own_redis
async def test_leaving_does_not_wait_for_a_store_that_does_not_answer(redis: RedisProcess, store: RedisStore) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        redis.pause()
        try:
            async with asyncio.timeout(TIMEOUT):
                await alone.leave()
        finally:
            redis.resume()
        assert alone.membership.members == ()
