"""``Renewals``: heartbeats of many callers share a round trip."""

import asyncio
import time

import pytest

from registry_server.errors import PermissionDenied
from registry_server.security.identity import Claim
from tests.unit.store.harness import StoreHarness

WAITING = pytest.mark.store_limits(renew_gather_seconds=30)


@pytest.mark.store_limits(renew_gather_seconds=0.2)
async def test_heartbeats_of_many_agents_share_a_call_of_the_script(harness: StoreHarness) -> None:
    for name in ("a", "b", "c"):
        await harness.write_service(name)
        await harness.set_deadline(name, 1)
    writer = harness.store.writer
    beats = [writer.renew_leases(names, may_wait=True) for names in (["a", "x"], ["y"], ["b"], ["c", "a", "z"])]
    assert await asyncio.gather(*beats) == [["x"], ["y"], [], ["z"]]
    assert harness.store.counters.scripts["renew"].ended.total() == 1
    for name in ("a", "b", "c"):
        assert (await harness.read_deadline(name) or 0) > await harness.now_ms()


@WAITING
async def test_heartbeat_that_may_not_wait_takes_waiting_ones_along(harness: StoreHarness) -> None:
    await harness.write_service("a")
    started = time.monotonic()
    waiting = asyncio.create_task(harness.store.writer.renew_leases(["a"], may_wait=True))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert await harness.store.writer.renew_leases(["b"]) == ["b"]
    assert await waiting == []
    assert time.monotonic() - started < 20


@pytest.mark.store_limits(renew_gather_seconds=0.05, renew_batch=3)
async def test_large_groups_take_several_calls_of_the_script(harness: StoreHarness) -> None:
    for name in ("a", "b", "c"):
        await harness.write_service(name)
    writer = harness.store.writer
    names = ["a", "u", "b"]
    beats = [writer.renew_leases(names[: i % 4], may_wait=True) for i in range(12)]
    assert await asyncio.gather(*beats) == [["u"] if i % 4 > 1 else [] for i in range(12)]


@pytest.mark.store_limits(renew_gather_seconds=0.05)
async def test_refused_heartbeat_renews_nothing_and_harms_no_other(harness: StoreHarness) -> None:
    for name in ("alice-1", "bob-1", "bob-2"):
        await harness.write_service(name)
        await harness.set_deadline(name, 1)
        await harness.client.hset(harness.store.keys.owners, name, name.partition("-")[0])
    alice, bob = (Claim(owner, exclusive=True) for owner in ("alice", "bob"))
    writer = harness.store.writer
    results = await asyncio.gather(
        writer.renew_leases(["bob-2", "alice-1"], bob, may_wait=True),
        writer.renew_leases(["alice-1"], alice, may_wait=True),
        writer.renew_leases(["bob-1"], bob, may_wait=True),
        return_exceptions=True,
    )
    assert isinstance(results[0], PermissionDenied)
    assert results[1] == results[2] == []
    assert await harness.read_deadline("bob-2") == 1
    for name in ("alice-1", "bob-1"):
        assert (await harness.read_deadline(name) or 0) > await harness.now_ms()
