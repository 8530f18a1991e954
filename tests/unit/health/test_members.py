import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from registry_server.errors import StoreUnavailable
from registry_server.health.members import Membership, assigned_member
from registry_server.runtime.tasks import cancel
from registry_server.store import RedisStore
from tests.support.redis_process import RedisProcess
from tests.support.waiting import until

TIMEOUT = 20.0
LONG = 600.0
"""A period that does not end during a test."""

IDS = st.lists(st.text("0123456789abcdef", min_size=1, max_size=16), min_size=1, max_size=8, unique=True)
NAMES = st.text("abcXYZ019._-", min_size=1, max_size=32)


# Assignment of names to members.


@given(IDS, NAMES)
def test_assignment_does_not_depend_on_the_order_of_members(members: list[str], name: str) -> None:
    chosen = assigned_member(name, tuple(members))
    assert chosen in members
    assert assigned_member(name, tuple(sorted(members))) == assigned_member(name, tuple(reversed(members))) == chosen


@given(IDS, st.lists(NAMES, max_size=30), st.data())
def test_leaving_member_moves_only_its_own_names(members: list[str], names: list[str], data: st.DataObject) -> None:
    leaving = data.draw(st.sampled_from(members))
    left = tuple(member for member in members if member != leaving)
    for name in names:
        before = assigned_member(name, tuple(members))
        if left and before != leaving:
            assert assigned_member(name, left) == before


def test_names_are_spread_evenly() -> None:
    members = tuple(f"{i:016x}" for i in range(5))
    shares = Counter(assigned_member(f"agent-{i}", members) for i in range(20_000))
    assert sorted(shares) == sorted(members)
    assert 3_700 < min(shares.values()) <= max(shares.values()) < 4_300  # five standard deviations around 4,000


def test_names_of_a_leaving_member_are_spread_evenly() -> None:
    members = tuple(f"{i:016x}" for i in range(5))
    freed = [name for name in (f"agent-{i}" for i in range(20_000)) if assigned_member(name, members) == members[0]]
    shares = Counter(assigned_member(name, members[1:]) for name in freed)
    assert len(shares) == 4
    assert min(shares.values()) > len(freed) / 4 * 0.8


# The member list in Redis.


@asynccontextmanager
async def open_store(process: RedisProcess) -> AsyncIterator[RedisStore]:
    store = RedisStore(process.url, timeout=1.0)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(redis: RedisProcess) -> AsyncIterator[RedisStore]:
    async with open_store(redis) as opened:
        yield opened


@pytest.fixture
async def client(redis: RedisProcess) -> AsyncIterator["Redis"]:
    made = Redis.from_url(redis.url)
    try:
        yield made
    finally:
        await made.aclose()


class Member:
    """A running membership, which counts changes of the assignment."""

    def __init__(self, store: RedisStore, period: float) -> None:
        self.membership = Membership(store, period=period)
        self.changes = 0
        self.task = asyncio.create_task(self.membership.run(self._changed))

    def _changed(self) -> None:
        self.changes += 1

    async def leave(self) -> None:
        await cancel([self.task])

    @property
    def member_count(self) -> int:
        return len(self.membership.members)


@asynccontextmanager
async def members(store: RedisStore, count: int, *, period: float) -> AsyncIterator[list[Member]]:
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(Member(store, period))
            stack.push_async_callback(made[-1].leave)
        await until(lambda: all(member.member_count == count for member in made))
        yield made


async def listed_members(store: RedisStore, client: Redis) -> set[str]:
    found: Any = await client.zrange(store.keys.members, 0, -1)
    return {each.decode() for each in found}


async def wait_for_listed_members(store: RedisStore, client: Redis, expected: set[str]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while await listed_members(store, client) != expected:
            await asyncio.sleep(0.005)


async def set_last_announcement(store: RedisStore, client: Redis, id_: str, seconds: float) -> None:
    """Set how long ago a member announced itself, in seconds; a negative number is in the future."""
    now, micros = await client.time()
    await client.zadd(store.keys.members, {id_: now * 1000 + micros // 1000 - round(seconds * 1000)})


async def test_member_owns_nothing_before_it_has_read_the_list(store: RedisStore) -> None:
    membership = Membership(store, period=LONG)
    assert membership.members == ()
    assert not membership.owns("a")


async def test_single_member_owns_every_name(store: RedisStore) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        assert alone.membership.members == (alone.membership.id,)
        assert all(alone.membership.owns(f"s{i}") for i in range(100))
        assert alone.changes == 1


async def test_each_name_is_owned_by_exactly_one_member(store: RedisStore, client: Redis) -> None:
    async with members(store, 3, period=1.0) as everyone:
        assert {member.membership.members for member in everyone} == {everyone[0].membership.members}
        assert await listed_members(store, client) == {member.membership.id for member in everyone}
        owned = [{f"s{i}" for i in range(100) if member.membership.owns(f"s{i}")} for member in everyone]
        assert all(owned)
        assert sum(map(len, owned)) == 100
        assert len(set().union(*owned)) == 100


@pytest.mark.slow
async def test_leaving_member_is_removed_immediately_and_owns_nothing(store: RedisStore, client: Redis) -> None:
    async with members(store, 2, period=LONG / 100) as [staying, leaving]:
        await leaving.leave()
        assert await listed_members(store, client) == {staying.membership.id}
        assert leaving.membership.members == ()
        assert not any(leaving.membership.owns(f"s{i}") for i in range(20))
        staying.membership.refresh()
        await until(lambda: staying.member_count == 1)
        assert all(staying.membership.owns(f"s{i}") for i in range(20))


async def test_member_that_is_silent_for_a_period_is_removed(store: RedisStore, client: Redis) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        await set_last_announcement(store, client, "nearly", LONG - 30)
        await set_last_announcement(store, client, "silent", LONG + 1)
        alone.membership.refresh()
        await until(lambda: alone.member_count == 2)
        assert await listed_members(store, client) == {alone.membership.id, "nearly"}

        await set_last_announcement(store, client, "nearly", LONG + 1)
        alone.membership.refresh()
        await until(lambda: alone.member_count == 1)
        assert alone.changes == 3


@pytest.mark.slow
async def test_member_announces_itself_several_times_per_period(store: RedisStore, client: Redis) -> None:
    async with members(store, 1, period=0.5) as [alone]:
        announcements = set[float]()

        async def collect_announcements() -> None:
            while len(announcements) < 5:
                score = await client.zscore(store.keys.members, alone.membership.id)
                assert score is not None
                announcements.add(float(score))
                await asyncio.sleep(0.005)

        async with asyncio.timeout(TIMEOUT):
            await collect_announcements()
        assert alone.changes == 1, "an announcement does not change the assignment"


async def test_dead_member_is_removed_after_the_clock_of_redis_was_set_back(store: RedisStore, client: Redis) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        # For a clock that was set back, both announcements are in the future.
        await set_last_announcement(store, client, alone.membership.id, -2 * LONG)
        await set_last_announcement(store, client, "dead", -2 * LONG)
        alone.membership.refresh()
        await until(lambda: alone.member_count == 1)
        await wait_for_listed_members(store, client, {alone.membership.id})


async def test_refresh_adds_a_member_that_was_removed_by_mistake(store: RedisStore, client: Redis) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        await client.delete(store.keys.members)
        alone.membership.refresh()
        await wait_for_listed_members(store, client, {alone.membership.id})
        assert alone.changes == 1


@pytest.mark.own_redis
async def test_assignment_stays_the_same_during_a_store_outage(
    redis: RedisProcess, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce_member, failures = store.writer.announce_member, 0

    async def announce_and_count_failures(member: str, period: float) -> list[str]:
        nonlocal failures
        try:
            return await announce_member(member, period)
        except StoreUnavailable:
            failures += 1
            raise

    monkeypatch.setattr(store.writer, "announce_member", announce_and_count_failures)
    async with members(store, 2, period=0.5) as both:
        before = both[0].membership.members
        redis.kill()
        await until(lambda: failures >= 4)
        assert [member.membership.members for member in both] == [before, before]
        assert [member.task.done() for member in both] == [False, False]
        await redis.restart()
        await until(lambda: all(member.member_count == 2 for member in both))


@pytest.mark.own_redis
async def test_leaving_does_not_wait_for_an_unresponsive_store(redis: RedisProcess, store: RedisStore) -> None:
    async with members(store, 1, period=LONG) as [alone]:
        redis.pause()
        try:
            async with asyncio.timeout(TIMEOUT):
                await alone.leave()
        finally:
            redis.resume()
        assert alone.membership.members == ()
