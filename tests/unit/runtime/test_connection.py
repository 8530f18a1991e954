import asyncio
import json
import pickle
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from registry_server.runtime.connection import Connection, PendingAnswers
from registry_server.runtime.tasks import cancel

TIMEOUT = 10.0
WAITS = 3600.0


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Connection, Connection]]:
    ends = [await Connection.open(end) for end in socket.socketpair()]
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            end.close()


async def test_messages_arrive_in_order_until_the_peer_closes() -> None:
    async with connected() as (one, other), asyncio.timeout(TIMEOUT):
        one.send_json({"a": [1, None]})
        one.send_pickle(("b", 2.5))
        one.send(b"x" * 1_000_000)
        one.close()
        received = [content async for content in other]
    assert [json.loads(received[0]), pickle.loads(received[1])] == [{"a": [1, None]}, ("b", 2.5)]
    assert received[2:] == [b"x" * 1_000_000]


async def test_empty_frame_is_observed_but_not_yielded() -> None:
    frames = 0

    def count() -> None:
        nonlocal frames
        frames += 1

    async with connected() as (one, other), asyncio.timeout(TIMEOUT):
        other.on_frame = count
        one.send(b"")
        one.send(b"content")
        one.send(b"")
        one.close()
        assert [content async for content in other] == [b"content"]
    assert frames == 3


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_frames_to_a_peer_that_has_ended_are_dropped(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def send_repeatedly() -> None:
        own_end, other_end = socket.socketpair()
        connection = await Connection.open(own_end)
        other_end.close()
        for _ in range(3):
            connection.send(b"content")
            await asyncio.sleep(0.01)
        assert [content async for content in connection] == []

    run(send_repeatedly())


async def test_truncated_frame_ends_the_iteration() -> None:
    own_end, other_end = socket.socketpair()
    connection = await Connection.open(own_end)
    with other_end:
        other_end.sendall(b"\x00\x00\x00\x05abc")
    async with asyncio.timeout(TIMEOUT):
        assert [content async for content in connection] == []
    connection.close()


async def test_iteration_ends_after_a_failed_write() -> None:
    async with connected() as (one, other), asyncio.timeout(TIMEOUT):
        other.close()
        await asyncio.sleep(0)
        one.send(b"broken pipe")
        assert [content async for content in one] == []
        await one.drain()


async def test_drain_waits_while_the_peer_does_not_read() -> None:
    async with connected() as (one, other), asyncio.timeout(TIMEOUT):
        one.send(b"x" * 10_000_000)
        draining = asyncio.create_task(one.drain())
        await asyncio.sleep(0.05)
        assert not draining.done()
        await anext(other)
        await draining


async def test_answers_reach_their_requests_in_any_order() -> None:
    pending, numbers = PendingAnswers[str](), list[int]()
    requests = [asyncio.create_task(pending.request(numbers.append, WAITS)) for _ in range(3)]
    await asyncio.sleep(0)
    assert len(set(numbers)) == 3
    for number in reversed(numbers):
        pending.resolve(number, f"answer {number}")
        pending.resolve(number, "repeated")
    assert await asyncio.gather(*requests) == [f"answer {number}" for number in numbers]
    pending.resolve(numbers[0], "late")


async def test_late_and_abandoned_requests_have_no_answer() -> None:
    pending, numbers = PendingAnswers[str](), list[int]()
    assert await pending.request(numbers.append, 0.0) is None
    pending.resolve(numbers[0], "late")
    requests = [asyncio.create_task(pending.request(numbers.append, WAITS)) for _ in range(2)]
    await asyncio.sleep(0)
    pending.abandon()
    assert await asyncio.gather(*requests) == [None, None]


async def test_cancelled_request_is_forgotten() -> None:
    pending, numbers = PendingAnswers[str](), list[int]()
    request = asyncio.create_task(pending.request(numbers.append, WAITS))
    await asyncio.sleep(0)
    await cancel([request])
    pending.resolve(numbers[0], "late")
    with pytest.raises(asyncio.CancelledError):
        await request
