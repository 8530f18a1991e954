import asyncio
import time
from typing import Any

import pytest
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from registry_server.config.addresses import HostPort
from registry_server.store.locating import Locator, _Answer, _newest_answer

HANG_SECONDS = 60.0
OLD, NEW = HostPort("old", 1), HostPort("new", 2)


async def answer(epoch: int, address: HostPort, after: float = 0.0) -> _Answer:
    await asyncio.sleep(after)
    return _Answer(epoch, address)


async def fail(error: Exception) -> _Answer:
    raise error


async def hang() -> _Answer:
    await asyncio.sleep(HANG_SECONDS)
    return _Answer(99, OLD)


async def test_newest_configuration_wins_regardless_of_order() -> None:
    result = await _newest_answer([answer(3, OLD), answer(4, NEW, 0.05), hang()], 2, "no answer")

    assert result.address == NEW


async def test_majority_is_sufficient_while_others_hang() -> None:
    began = time.monotonic()

    result = await _newest_answer([hang(), answer(2, OLD), answer(2, OLD), hang(), answer(2, OLD)], 2, "no answer")

    assert result.address == OLD
    assert time.monotonic() - began < HANG_SECONDS / 2


async def test_single_answer_is_accepted_if_all_others_fail() -> None:
    queries = [fail(RedisConnectionError("down")), answer(2, NEW), fail(OSError("down"))]

    assert (await _newest_answer(queries, 2, "no answer")).address == NEW


async def test_outdated_answer_of_a_minority_is_rejected() -> None:
    queries = [fail(RedisConnectionError("down")), answer(1, OLD), fail(RedisConnectionError("down"))]

    with pytest.raises(RedisConnectionError, match=r"^no answer: down; the servers that answered are behind$"):
        await _newest_answer(queries, 2, "no answer")


async def test_answer_of_a_majority_is_accepted_after_an_epoch_reset() -> None:
    queries = [fail(RedisConnectionError("down")), answer(0, NEW), answer(0, NEW)]

    assert (await _newest_answer(queries, 2, "no answer")).address == NEW


async def test_error_lists_each_reason_once() -> None:
    queries = [
        fail(RedisConnectionError("down")),
        fail(RedisConnectionError("down")),
        fail(AuthenticationError("HELLO must be called with the client already authenticated")),
        fail(ValueError("no number")),
    ]

    with pytest.raises(RedisConnectionError, match=r"^no answer: down; no number; our credentials are refused$"):
        await _newest_answer(queries, 2, "no answer")


async def test_pending_queries_are_cancelled() -> None:
    tasks = asyncio.all_tasks()

    await _newest_answer([answer(2, OLD), answer(2, OLD), hang()], 2, "no answer")

    assert asyncio.all_tasks() == tasks


class Client:
    """Counts how often it is closed, and yields to the event loop while it closes."""

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1
        await asyncio.sleep(0)


class Shard(Locator):
    """Every server reports the servers in ``reported``."""

    checks_role = False
    reported: tuple[HostPort, ...] = ()

    async def _query(self, queried: HostPort, client: Any) -> _Answer:  # noqa: ARG002 - the interface of Locator
        return _Answer(1, OLD, self.reported)


async def test_concurrent_searches_close_each_client_of_a_removed_server_once() -> None:
    clients: dict[HostPort, Any] = {}
    locator = Shard([OLD], lambda address: clients.setdefault(address, Client()), "no answer")
    locator.reported = (NEW, HostPort("newer", 3))
    for _ in range(2):  # the second search queries the servers that the first one found
        await locator.locate_primary()
    locator.reported = ()
    await asyncio.gather(*(locator.locate_primary() for _ in range(3)))
    assert {address.host: client.closed for address, client in clients.items()} == {"old": 0, "new": 1, "newer": 1}
