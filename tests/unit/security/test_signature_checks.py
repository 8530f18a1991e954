"""``SignatureChecks``: turns and the share of time for verifying signatures."""

import asyncio
import time
from collections.abc import Callable

import pytest

from registry_server.errors import Overloaded
from registry_server.security.signature_checks import MAX_SHARE, MAX_WAITING_CHECKS, SignatureChecks


class Forged(Exception):
    """The signature is not valid."""


def forged() -> None:
    raise Forged


async def outcome(checks: SignatureChecks, address: str, subject: str, check: Callable[[], object]) -> type | None:
    try:
        await checks.run(address, subject, check)
    except (Forged, Overloaded) as error:
        return type(error)
    return None


async def test_known_subject_waits_one_turn_behind_any_number_of_forged_tokens() -> None:
    checks = SignatureChecks(burst_seconds=0)
    done: list[str] = []
    await checks.run("192.0.2.1", "known", lambda: None)

    def forge() -> None:
        done.append("forged")
        raise Forged

    async with asyncio.TaskGroup() as group:
        for i in range(500):
            group.create_task(outcome(checks, "192.0.2.1", f"guess-{i}", forge))
        await asyncio.sleep(0)
        before = len(done)
        group.create_task(outcome(checks, "192.0.2.1", "known", lambda: done.append("known")))
        group.create_task(outcome(checks, "192.0.2.2", "new", lambda: done.append("new")))
    assert len(done) == 502
    assert {"known", "new"} <= set(done[before : before + 10])


async def test_full_queue_refuses_more_of_the_same_address_only() -> None:
    checks = SignatureChecks(burst_seconds=0)
    tasks = [asyncio.create_task(outcome(checks, "192.0.2.1", f"guess-{i}", forged)) for i in range(MAX_WAITING_CHECKS)]
    await asyncio.sleep(0)
    refused = await outcome(checks, "192.0.2.1", "guess", forged)
    assert refused is Overloaded
    assert await outcome(checks, "192.0.2.2", "new", lambda: None) is None
    assert set(await asyncio.gather(*tasks)) == {Forged, Overloaded}


@pytest.mark.slow
async def test_checks_take_a_bounded_share_of_the_time() -> None:
    checks = SignatureChecks()
    used = 0.0

    def work() -> None:
        nonlocal used
        began = time.thread_time()
        while time.thread_time() - began < 0.002:
            pass
        used += time.thread_time() - began

    began = time.monotonic()
    await asyncio.gather(*(checks.run("192.0.2.1", str(i), work) for i in range(500)))
    assert used >= 1.0
    assert used / (time.monotonic() - began) < MAX_SHARE * 1.2


async def test_cancelled_check_gives_its_turn_back() -> None:
    checks = SignatureChecks(burst_seconds=0)
    for _ in range(3):
        waiting = [asyncio.create_task(outcome(checks, "192.0.2.1", str(i), lambda: None)) for i in range(10)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert results[1::2] == [None] * 5
    assert await outcome(checks, "192.0.2.1", "last", lambda: None) is None
