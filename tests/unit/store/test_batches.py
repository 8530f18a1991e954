"""``Batches``: order, size and failure of what many tasks send together."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from registry_server.errors import StoreUnavailable
from registry_server.store.batches import Batches


class Numbers(Batches[int]):
    """Answers each number with its double, after ``release``; a negative number is an error."""

    def __init__(self, gather_seconds: float = 0.0) -> None:
        super().__init__("numbers", 3, gather_seconds=gather_seconds, gather_seconds_per_item=gather_seconds)
        self.sent: list[list[int]] = []
        self.failure: Exception | None = None
        self.release = asyncio.Event()

    async def _send(self, batch: list[int]) -> Sequence[Any]:
        self.sent.append(batch)
        await self.release.wait()
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        return [ValueError("negative") if number < 0 else 2 * number for number in batch]


async def results(*futures: "asyncio.Future[Any]") -> list[object]:
    return list(await asyncio.gather(*futures, return_exceptions=True))


async def test_items_are_sent_in_order_one_batch_at_a_time() -> None:
    numbers = Numbers()
    futures = [numbers.submit(i) for i in range(7)]
    await asyncio.sleep(0)
    assert (numbers.sent, numbers.waiting) == ([[0, 1, 2]], 4)
    futures[1].cancel()
    numbers.release.set()
    await numbers.close()
    assert numbers.sent == [[0, 1, 2], [3, 4, 5], [6]]
    assert [future.result() for future in futures if not future.cancelled()] == [0, 4, 6, 8, 10, 12]


async def test_error_of_one_item_concerns_only_its_caller() -> None:
    numbers = Numbers()
    numbers.release.set()
    one, failed, three = await results(*(numbers.submit(i) for i in (1, -2, 3)))
    assert (one, three) == (2, 6)
    assert isinstance(failed, ValueError)


@pytest.mark.parametrize(("failure", "failed"), [(StoreUnavailable(), 5), (RuntimeError("bug"), 3)])
async def test_unavailable_store_fails_the_waiting_batches_too(failure: Exception, failed: int) -> None:
    numbers = Numbers()
    futures = [numbers.submit(i) for i in range(5)]
    await asyncio.sleep(0)
    numbers.failure = failure
    numbers.release.set()
    assert await results(*futures) == [failure] * failed + [2 * i for i in range(failed, 5)]


async def test_after_one_item_the_next_is_sent_at_once() -> None:
    numbers = Numbers(gather_seconds=3600.0)
    numbers.release.set()
    for i in range(3):
        assert await results(numbers.submit(i)) == [2 * i]


async def test_after_several_items_the_next_wait_until_a_batch_is_full() -> None:
    numbers = Numbers(gather_seconds=3600.0)
    numbers.release.set()
    await results(numbers.submit(1), numbers.submit(2))
    futures = [numbers.submit(3), numbers.submit(4)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert numbers.sent == [[1, 2]]
    assert await results(*futures, numbers.submit(5)) == [6, 8, 10]
    assert numbers.sent == [[1, 2], [3, 4, 5]]


async def test_waiting_items_are_sent_when_no_more_are_expected() -> None:
    numbers = Numbers(gather_seconds=3600.0)
    numbers.release.set()
    await results(numbers.submit(1), numbers.submit(2))
    future = numbers.submit(3)
    await asyncio.sleep(0)
    numbers.send_now()
    assert await results(future) == [6]


async def test_waiting_items_are_sent_in_time() -> None:
    numbers = Numbers(gather_seconds=0.01)
    numbers.release.set()
    await results(numbers.submit(1), numbers.submit(2))
    assert await results(numbers.submit(3)) == [6]
