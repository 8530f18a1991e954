import asyncio
import time

import pytest
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from registry_server.config.addresses import HostPort
from registry_server.store.locating import _Answer, _newest_answer

HANG = 60.0
OLD, NEW = HostPort("old", 1), HostPort("new", 2)


async def says(epoch: int, address: HostPort, after: float = 0.0) -> _Answer:
    await asyncio.sleep(after)
    return _Answer(epoch, address)


async def fails(error: Exception) -> _Answer:
    raise error


async def hangs() -> _Answer:
    await asyncio.sleep(HANG)
    return _Answer(99, OLD)


async def test_the_newest_configuration_counts_whoever_answers_first() -> None:
    claim = await _newest_answer([says(3, OLD), says(4, NEW, 0.05), hangs()], 2, "nobody knows")

    assert claim.address == NEW


async def test_a_majority_is_enough_and_those_that_hang_are_not_waited_for() -> None:
    began = time.monotonic()

    claim = await _newest_answer([hangs(), says(2, OLD), says(2, OLD), hangs(), says(2, OLD)], 2, "nobody knows")

    assert claim.address == OLD
    assert time.monotonic() - began < HANG / 2


async def test_one_answer_is_enough_where_the_others_fail() -> None:
    questions = [fails(RedisConnectionError("away")), says(2, NEW), fails(OSError("away"))]

    assert (await _newest_answer(questions, 2, "nobody knows")).address == NEW


async def test_a_minority_that_is_behind_what_was_known_is_not_believed() -> None:
    questions = [fails(RedisConnectionError("away")), says(1, OLD), fails(RedisConnectionError("away"))]

    with pytest.raises(RedisConnectionError, match=r"^nobody knows: away; the servers that answered are behind$"):
        await _newest_answer(questions, 2, "nobody knows")


async def test_a_majority_is_believed_even_if_epochs_were_reset() -> None:
    questions = [fails(RedisConnectionError("away")), says(0, NEW), says(0, NEW)]

    assert (await _newest_answer(questions, 2, "nobody knows")).address == NEW


async def test_where_nobody_knows_it_says_why_each_reason_once() -> None:
    questions = [
        fails(RedisConnectionError("away")),
        fails(RedisConnectionError("away")),
        fails(AuthenticationError("HELLO must be called with the client already authenticated")),
        fails(ValueError("no number")),
    ]

    with pytest.raises(RedisConnectionError, match=r"^nobody knows: away; no number; our credentials are refused$"):
        await _newest_answer(questions, 2, "nobody knows")


async def test_those_that_are_not_waited_for_are_ended() -> None:
    tasks = asyncio.all_tasks()

    await _newest_answer([says(2, OLD), says(2, OLD), hangs()], 2, "nobody knows")

    assert asyncio.all_tasks() == tasks
