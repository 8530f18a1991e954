"""``RedisStore``: keys, URLs and failures of Redis."""

import asyncio
from typing import Any

import pytest

from registry_server.errors import ConfigurationError, StoreUnavailable
from registry_server.store import Position, ProbeResult, RedisStore
from registry_server.store.keys import Keys
from tests.support.redis_process import RedisProcess
from tests.unit.store.harness import LEASE_EXPIRED, StoreHarness, open_harness

# Keys.


@pytest.mark.parametrize(
    ("prefix", "own"),
    [
        ("ossa:services", "ossa:registry:"),
        ("{ossa}:services", "{ossa}:registry:"),
        ("team:ossa:services", "team:ossa:registry:"),
        ("plain", "plain:registry:"),
        ("services", "services:registry:"),
        ("{tag}", "{tag}:registry:"),
    ],
)
async def test_all_keys_have_the_prefix(redis_process: RedisProcess, prefix: str, own: str) -> None:
    harness = await open_harness(redis_process, key_prefix=prefix)
    await harness.write_service("a")
    await harness.write_service("b")
    await harness.store.writer.write_check("a", b"check", expected=1)
    await harness.client.delete(f"{prefix}:b")
    await harness.store.writer.renew_leases(["b"])
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)

    kinds = ("revision", "epoch", "records", "leases", "ttls", "events", "checks", "sweep", "bare")
    assert set(await harness.client.keys("*")) == {f"{prefix}:a".encode(), *(f"{own}{kind}".encode() for kind in kinds)}
    assert Keys.under(prefix).document_prefix == f"{prefix}:"
    await harness.client.aclose()
    await harness.store.close()


async def test_registries_with_different_prefixes_are_independent(redis_process: RedisProcess) -> None:
    one = await open_harness(redis_process, key_prefix="one:services")
    two = await open_harness(redis_process, key_prefix="two:services")

    await one.write_service("a")
    await two.write_service("a")
    await two.write_service("a", 1)
    await one.delete_service("a", 1)

    assert one.epoch != two.epoch
    assert (await one.read_revision(), await two.read_revision()) == (2, 2)
    assert (await one.read_document("a"), (await two.read_document("a"))["revision"]) == (None, 2)
    for harness in (one, two):
        await harness.client.aclose()
        await harness.store.close()


@pytest.mark.parametrize(
    "url", ["http://localhost", "redis://localhost?colour=red", "redis+sentinel://h/m?colour=red", ""]
)
def test_unsupported_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^redis\.url: "):
        RedisStore(url)


# Failures of Redis.


async def test_scripts_are_reloaded_after_redis_lost_them(harness: StoreHarness) -> None:
    writes = [asyncio.create_task(harness.write_service(f"s{i}")) for i in range(1000)]
    await writes[100]
    await harness.client.script_flush()

    outcomes = await asyncio.gather(*writes)

    assert sorted(outcome for outcome in outcomes if isinstance(outcome, int)) == list(range(1, 1001))


async def test_repeated_loss_of_scripts_is_unavailability(harness: StoreHarness) -> None:
    writes = [asyncio.create_task(harness.write_service(f"s{i}")) for i in range(2000)]
    while not all(write.done() for write in writes):
        await harness.client.script_flush()

    outcomes = await asyncio.gather(*writes, return_exceptions=True)

    made = sorted(outcome for outcome in outcomes if isinstance(outcome, int))
    assert made == list(range(1, len(made) + 1))
    assert all(isinstance(outcome, int | StoreUnavailable) for outcome in outcomes)


@pytest.mark.own_redis
async def test_history_continues_after_a_restart_of_redis(harness: StoreHarness, redis_process: RedisProcess) -> None:
    await harness.write_service("a")
    redis_process.kill()
    await redis_process.restart()

    await harness.store.reconnect()

    assert await harness.store.reader.resolve_head() == Position(harness.epoch, 1)
    assert await harness.write_service("b") == 2
    assert [event.name for event in await harness.store.reader.wait_for_events(0)] == ["a", "b"]


@pytest.mark.own_redis
async def test_reconnect_fails_until_redis_is_back(harness: StoreHarness, redis_process: RedisProcess) -> None:
    await redis_process.stop()

    with pytest.raises(StoreUnavailable):
        await harness.store.reconnect()
    with pytest.raises(StoreUnavailable):
        await harness.store.reader.wait_for_events(0)
    with pytest.raises(StoreUnavailable):
        await harness.store.open()
    with pytest.raises(StoreUnavailable):
        await harness.store.reader.read_event(1)


WRITES = {
    "register": lambda harness: harness.write_service("new"),
    "update": lambda harness: harness.write_service("a", 1),
    "update with a new lease": lambda harness: harness.write_service("a", 1, ttl=70, forget_check=True),
    "touch": lambda harness: harness.touch_service("a", 1),
    "touch without renewal": lambda harness: harness.touch_service("a", 1, renew=False),
    "delete": lambda harness: harness.delete_service("a", 1),
    "renew": lambda harness: harness.store.writer.renew_leases(["a"]),
    "sweep": lambda harness: harness.store.writer.sweep_leases(LEASE_EXPIRED),
    "check": lambda harness: harness.store.writer.write_check("a", b"new check", expected=1),
    "probe results": lambda harness: harness.store.writer.write_checks([ProbeResult("a", b"new check", renew=True)]),
    "notice": lambda harness: harness.publish_notice("trouble"),
    "member": lambda harness: harness.store.writer.announce_member("process", 60),
    "new epoch": lambda harness: harness.store.reader.resolve_head(Position(harness.epoch, 99)),
}


async def prepare(harness: StoreHarness) -> None:
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    await harness.write_service("a")
    await harness.store.writer.write_check("a", b"check", expected=1)
    await harness.write_service("ended")
    await harness.client.zadd(harness.store.keys.leases, {"ended": await harness.now_ms() - 1})


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_write_fails_completely_if_redis_is_out_of_memory(harness: StoreHarness, write: Any) -> None:
    await prepare(harness)
    contents = await harness.read_contents()
    await harness.client.config_set("maxmemory", "1")

    with pytest.raises(StoreUnavailable, match="out of memory"):
        await write(harness)

    assert await harness.read_contents() == contents
    await harness.client.config_set("maxmemory", "0")
    await write(harness)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_write_fails_completely_if_redis_lacks_replicas(harness: StoreHarness, write: Any) -> None:
    await prepare(harness)
    contents = await harness.read_contents()
    await harness.client.config_set("min-replicas-to-write", "1")

    with pytest.raises(StoreUnavailable, match="too few replicas"):
        await write(harness)

    assert await harness.read_contents() == contents
    await harness.client.config_set("min-replicas-to-write", "0")
    await write(harness)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_write_fails_completely_if_redis_is_a_replica(
    harness: StoreHarness, redis_process: RedisProcess, write: Any
) -> None:
    await prepare(harness)
    await harness.client.replicaof("127.0.0.1", redis_process.port)  # from a server that never sends data

    contents = await harness.read_contents()
    with pytest.raises(StoreUnavailable):
        await write(harness)

    assert await harness.read_contents() == contents
    await harness.client.replicaof("NO", "ONE")
    await write(harness)
