"""``StoreWriter``: leases, sweeps and probe results."""

from typing import Any

import pytest

from ossa.registry.v1.service_pb2 import Service
from registry_server.store import CheckChange, Conflict, ProbeResult
from tests.support.redis_process import RedisProcess
from tests.unit.store.harness import LEASE_EXPIRED, SLACK_MS, UNREGISTERED, StoreHarness, open_harness

# Renewal.


async def test_renewal_restores_the_full_length(harness: StoreHarness) -> None:
    await harness.write_service("a", ttl=60)
    await harness.write_service("b", ttl=30)
    for name in "ab":
        await harness.set_deadline(name, await harness.now_ms() + 10_000)

    assert await harness.store.writer.renew_leases(["a", "b"]) == []

    for name, ttl in (("a", 60_000), ("b", 30_000)):
        deadline = await harness.read_deadline(name)
        assert deadline is not None
        assert 0 <= await harness.now_ms() + ttl - deadline < SLACK_MS
        assert ttl - SLACK_MS < await harness.read_document_ttl_ms(name) <= ttl


async def test_renewal_publishes_no_event(harness: StoreHarness) -> None:
    await harness.write_service("a")
    events = await harness.read_events()

    await harness.store.writer.renew_leases(["a"])

    assert (await harness.read_events(), await harness.read_revision()) == (events, 1)


@pytest.mark.store_limits(renew_batch=3)
async def test_renewal_returns_unknown_names_in_order(harness: StoreHarness) -> None:
    for name in ("good1", "good2", "good3"):
        await harness.write_service(name)

    names = ["no1", "good1", "good2", "no2", "good3", "no1", "good1", "no3"]

    assert await harness.store.writer.renew_leases(names) == ["no1", "no2", "no1", "no3"]


async def test_renewal_of_a_permanent_service_changes_nothing(harness: StoreHarness) -> None:
    await harness.write_service("a", ttl=0)

    assert await harness.store.writer.renew_leases(["a"]) == []

    assert await harness.read_deadline("a") == float("inf")
    assert await harness.read_document_ttl_ms("a") == -1
    assert (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents == []


async def test_renewal_of_no_names_succeeds(harness: StoreHarness) -> None:
    assert await harness.store.writer.renew_leases([]) == []


@pytest.mark.parametrize("change", [StoreHarness.write_service, StoreHarness.touch_service])
async def test_sweeps_report_a_missing_document_until_it_is_written(harness: StoreHarness, change: Any) -> None:
    for name in "ab":
        await harness.write_service(name)
    await harness.client.delete(harness.store.keys.document_prefix + "a")
    await harness.store.writer.renew_leases(["a", "b"])

    assert [(await harness.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents for _ in range(2)] == [
        ["a"],
        ["a"],
    ]

    await change(harness, "a", 1)

    assert (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents == []
    assert await harness.read_document("a") is not None


async def test_sweeps_report_no_documents_of_removed_services(harness: StoreHarness) -> None:
    for name in ("deleted", "ended"):
        await harness.write_service(name)
        await harness.client.delete(harness.store.keys.document_prefix + name)
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    await harness.store.writer.renew_leases(["deleted", "ended"])

    await harness.delete_service("deleted", 1)
    await harness.set_deadline("ended", await harness.now_ms() - 1)

    sweep = await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    assert (sweep.removed, sweep.missing_documents) == (["ended"], [])


@pytest.mark.store_limits(sweep_batch=3)
async def test_sweep_reports_missing_documents_in_batches(harness: StoreHarness) -> None:
    names = [f"s{i}" for i in range(5)]
    for name in names:
        await harness.write_service(name)
        await harness.client.delete(harness.store.keys.document_prefix + name)
    await harness.store.writer.renew_leases(names)

    bare = (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents

    assert len(set(bare)) == 3
    assert set(bare) < set(names)


# Sweeps.


async def test_sweep_removes_expired_services_in_order_of_expiry(harness: StoreHarness) -> None:
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    for name in ("second", "alive", "first", "permanent", "third"):
        await harness.write_service(name, ttl=0 if name == "permanent" else 60)
    now = await harness.now_ms()
    for ago, name in ((30, "first"), (20, "second"), (10, "third")):
        await harness.set_deadline(name, now - ago)

    sweep = await harness.store.writer.sweep_leases(LEASE_EXPIRED)

    assert sweep.removed == ["first", "second", "third"]
    assert (sweep.shift_seconds, sweep.missing_documents) == (0, [])
    assert sweep.next_expiry_seconds is not None
    assert 60 - SLACK_MS / 1000 < sweep.next_expiry_seconds <= 60
    events = (await harness.read_events())[5:]
    assert [(event.name, event.type, event.reason, event.revision) for event in events] == [
        ("first", UNREGISTERED, LEASE_EXPIRED, 6),
        ("second", UNREGISTERED, LEASE_EXPIRED, 7),
        ("third", UNREGISTERED, LEASE_EXPIRED, 8),
    ]
    assert Service.FromString(events[0].before).name == "first"
    assert not any(event.after for event in events)
    assert await harness.read_record("first") is None
    assert await harness.client.hkeys(harness.store.keys.ttls) == [b"alive", b"permanent"]


@pytest.mark.store_limits(sweep_batch=2)
async def test_sweep_removes_a_batch_and_reports_further_expiries(harness: StoreHarness) -> None:
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    now = await harness.now_ms()
    for i in range(3):
        await harness.write_service(f"s{i}")
        await harness.set_deadline(f"s{i}", now - 10 + i)

    sweeps = [await harness.store.writer.sweep_leases(LEASE_EXPIRED) for _ in range(3)]

    assert [sweep.removed for sweep in sweeps] == [["s0", "s1"], ["s2"], []]
    assert [sweep.next_expiry_seconds for sweep in sweeps] == [0, None, None]


async def test_sweep_returns_the_time_until_the_next_expiry(harness: StoreHarness) -> None:
    assert (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).next_expiry_seconds is None
    await harness.write_service("permanent", ttl=0)
    assert (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).next_expiry_seconds is None
    await harness.write_service("a", ttl=50)
    await harness.write_service("b", ttl=40)

    next_in = (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).next_expiry_seconds

    assert next_in is not None
    assert 40 - SLACK_MS / 1000 < next_in <= 40


@pytest.mark.parametrize("gap_ms", [60_000, -60_000], ids=["no sweeps", "clock set back"])
async def test_sweep_after_a_gap_shifts_leases_and_removes_nothing(harness: StoreHarness, gap_ms: int) -> None:
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    now = await harness.now_ms()
    await harness.write_service("permanent", ttl=0)
    # At the start of the gap, 20 s of one lease remained and 100 s of the other.
    for name, left in (("short", 20_000), ("long", 100_000)):
        await harness.write_service(name, ttl=200)
        await harness.set_deadline(name, now - gap_ms + left)
    await harness.client.set(harness.store.keys.sweep, now - gap_ms)

    sweep = await harness.store.writer.sweep_leases(LEASE_EXPIRED)

    assert sweep.removed == []
    assert sweep.next_expiry_seconds is not None
    assert 20 - SLACK_MS / 1000 < sweep.next_expiry_seconds <= 20 + SLACK_MS / 1000
    assert abs(sweep.shift_seconds * 1000 - gap_ms) < SLACK_MS
    for name, left in (("short", 20_000), ("long", 100_000)):
        deadline = await harness.read_deadline(name)
        assert deadline is not None
        assert abs(deadline - now - left) < SLACK_MS
    assert abs(await harness.read_document_ttl_ms("long") - 100_000) < SLACK_MS
    # The document of a lease that ended within the gap has expired, although the lease was shifted.
    assert sweep.missing_documents == (["short"] if gap_ms > 0 else [])
    assert await harness.read_deadline("permanent") == float("inf")
    again = await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    assert (again.removed, again.shift_seconds) == ([], 0)  # a gap is applied once


@pytest.mark.parametrize("renewed", ["registered", "heartbeat", "probed"])
async def test_lease_started_after_the_clock_was_set_back_has_full_length(harness: StoreHarness, renewed: str) -> None:
    await harness.write_service("a", ttl=20)
    await harness.client.set(harness.store.keys.sweep, await harness.now_ms() + 3_600_000)

    match renewed:
        case "registered":
            await harness.write_service("b", ttl=20)
        case "heartbeat":
            await harness.store.writer.renew_leases(["a"])
        case _:
            await harness.store.writer.write_checks([ProbeResult("a", b"", renew=True)])
    moved, after = [await harness.store.writer.sweep_leases(LEASE_EXPIRED) for _ in range(2)]

    assert (moved.removed, after.removed) == ([], ["a"] if renewed == "registered" else [])
    assert after.next_expiry_seconds is not None
    assert abs(after.next_expiry_seconds - 20) < SLACK_MS / 1000


async def test_lease_that_expired_before_a_gap_expires_after_it(harness: StoreHarness) -> None:
    await harness.write_service("a")
    now = await harness.now_ms()
    await harness.set_deadline("a", now - 60_001)
    await harness.client.set(harness.store.keys.sweep, now - 60_000)

    moved = await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    swept = await harness.store.writer.sweep_leases(LEASE_EXPIRED)

    assert (moved.removed, swept.removed) == ([], ["a"])


@pytest.mark.parametrize("late_ms", [0, 15_000, -9_000])
async def test_slightly_late_or_early_sweep_shifts_nothing(redis_process: RedisProcess, late_ms: int) -> None:
    harness = await open_harness(redis_process, sweep_interval=10.0)
    await harness.write_service("a")
    deadline = await harness.read_deadline("a")
    await harness.client.set(harness.store.keys.sweep, await harness.now_ms() - late_ms)

    assert (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).shift_seconds == 0

    assert await harness.read_deadline("a") == deadline
    await harness.client.aclose()
    await harness.store.close()


async def test_sweep_deletes_a_lease_without_a_service(harness: StoreHarness) -> None:
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    await harness.client.zadd(harness.store.keys.leases, {"ghost": 1})

    await harness.store.writer.sweep_leases(LEASE_EXPIRED)

    assert await harness.read_deadline("ghost") is None
    assert await harness.read_events() == []


# Probe results.


async def test_check_is_stored_for_registered_services_only(harness: StoreHarness) -> None:
    await harness.write_service("a", ttl=60)

    assert await harness.store.writer.write_check("a", b"one", expected=1) is None
    assert await harness.store.writer.write_check("a", b"two", expected=1) is None
    assert await harness.store.writer.write_check("a", b"of another revision", expected=7) == Conflict(1, 1)
    assert await harness.store.writer.write_check("absent", b"three", expected=1) == Conflict(1, 0)

    check, ends = await harness.store.reader.read_check("a")
    assert check == b"two"
    assert ends == await harness.read_deadline("a")
    assert await harness.store.reader.read_check("absent") == (None, None)
    assert await harness.read_revision() == 1


async def test_check_replaces_only_the_one_that_was_read(harness: StoreHarness) -> None:
    await harness.write_service("a")
    writer, reader = harness.store.writer, harness.store.reader

    assert await writer.write_check("a", b"one", expected=1, seen=b"other") == Conflict(1, 1)
    assert await writer.write_check("a", b"one", expected=1, seen=b"") is None
    assert await writer.write_check("a", b"two", expected=1, seen=b"") == Conflict(1, 1)
    assert await writer.write_check("a", b"two", expected=1, seen=b"one") is None
    assert (await reader.read_check("a"))[0] == b"two"


async def test_commit_replaces_only_the_check_that_was_read(harness: StoreHarness) -> None:
    await harness.write_service("a")

    async def commit(expected: int, check: CheckChange) -> object:
        return await harness.write_service("a", expected, check=check)

    assert await commit(1, CheckChange(b"one", b"other")) == Conflict(1, 1)
    assert await commit(1, CheckChange(b"one", b"")) == 2
    assert (await harness.store.reader.read_check("a"))[0] == b"one"
    assert await commit(2, CheckChange(b"", b"two")) == Conflict(2, 2)
    assert await commit(2, CheckChange(b"", b"one")) == 3
    assert (await harness.store.reader.read_check("a"))[0] is None


async def test_empty_result_renews_the_lease_and_keeps_the_check(harness: StoreHarness) -> None:
    await harness.write_service("a", ttl=60)
    await harness.store.writer.write_check("a", b"check", expected=1)
    await harness.set_deadline("a", await harness.now_ms() + 1_000)

    await harness.store.writer.write_checks([ProbeResult("a", b"", renew=True)])

    check, ends = await harness.store.reader.read_check("a")
    assert check == b"check"
    assert ends is not None
    assert ends > await harness.now_ms() + 30_000


async def test_check_is_kept_until_forgotten_or_service_deleted(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.store.writer.write_check("a", b"check", expected=1)

    await harness.write_service("a", 1)
    assert (await harness.store.reader.read_check("a"))[0] == b"check"
    await harness.write_service("a", 2, forget_check=True)
    assert (await harness.store.reader.read_check("a"))[0] is None

    await harness.store.writer.write_check("a", b"check", expected=1)
    await harness.delete_service("a", 3)
    await harness.write_service("a")
    assert (await harness.store.reader.read_check("a"))[0] is None


async def test_sweep_deletes_checks_of_removed_services(harness: StoreHarness) -> None:
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    await harness.write_service("a")
    await harness.store.writer.write_check("a", b"check", expected=1)
    await harness.set_deadline("a", await harness.now_ms() - 1)

    await harness.store.writer.sweep_leases(LEASE_EXPIRED)

    assert await harness.client.hgetall(harness.store.keys.checks) == {}


async def test_results_are_stored_for_registered_services_only(harness: StoreHarness) -> None:
    await harness.write_service("a")
    await harness.write_service("b")
    before = await harness.read_events()

    await harness.store.writer.write_checks(
        [
            ProbeResult("a", b"of a", renew=False),
            ProbeResult("absent", b"of no service", renew=True),
            ProbeResult("b", b"\x00\xff", renew=True),
        ]
    )

    assert await harness.client.hgetall(harness.store.keys.checks) == {b"a": b"of a", b"b": b"\x00\xff"}
    assert await harness.read_deadline("absent") is None
    assert await harness.read_events() == before
    assert await harness.read_revision() == 2


async def test_successful_results_renew_leases(harness: StoreHarness) -> None:
    soon = await harness.now_ms() + 1_000
    for name in ("renewed", "kept"):
        await harness.write_service(name, ttl=60)
        await harness.set_deadline(name, soon)
    await harness.write_service("permanent", ttl=0)

    before = await harness.now_ms()
    await harness.store.writer.write_checks(
        [ProbeResult(name, b"check", renew=name != "kept") for name in ("renewed", "kept", "permanent")]
    )

    renewed = await harness.read_deadline("renewed")
    assert renewed is not None
    assert 0 <= renewed - before - 60_000 < SLACK_MS
    assert await harness.read_document_ttl_ms("renewed") > 60_000 - SLACK_MS
    assert await harness.read_deadline("kept") == soon
    assert await harness.read_document_ttl_ms("kept") <= 1_000
    assert await harness.read_deadline("permanent") == float("inf")
    assert await harness.read_document_ttl_ms("permanent") == -1


async def test_result_renewing_a_lease_reports_a_missing_document(harness: StoreHarness) -> None:
    await harness.store.writer.sweep_leases(LEASE_EXPIRED)
    await harness.write_service("a")
    await harness.client.delete(harness.store.keys.document_prefix + "a")

    await harness.store.writer.write_checks([ProbeResult("a", b"check", renew=True)])

    assert (await harness.store.writer.sweep_leases(LEASE_EXPIRED)).missing_documents == ["a"]


@pytest.mark.store_limits(checks_batch=3)
async def test_results_are_written_in_batches_and_in_order(harness: StoreHarness) -> None:
    names = [f"s{i}" for i in range(7)]
    for name in names:
        await harness.write_service(name)

    await harness.store.writer.write_checks([])
    await harness.store.writer.write_checks([ProbeResult(name, name.encode(), renew=False) for name in names])
    await harness.store.writer.write_checks([ProbeResult("s0", b"newer", renew=False)])

    checks = {name.encode(): name.encode() for name in names}
    assert await harness.client.hgetall(harness.store.keys.checks) == {**checks, b"s0": b"newer"}
