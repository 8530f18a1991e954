"""``Batches``: what many tasks send to Redis during one round trip shares the next one."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextvars import Context
from typing import Any, Final, Generic, TypeVar

from registry_server.errors import StoreUnavailable

_RECENT_SECONDS: Final = 0.05
"""Age up to which the previous batch shows how many items to expect."""

T = TypeVar("T")


class Batches(ABC, Generic[T]):
    """Sends items in batches, one batch at a time, in the order in which the items were submitted."""

    def __init__(
        self, name: str, batch_size: int, *, gather_seconds: float = 0.0, gather_seconds_per_item: float = 0.0
    ) -> None:
        """Create an empty queue.

        Args:
            name: Name of the task that sends.
            batch_size: Maximum number of items in a batch.
            gather_seconds: How long at most a batch that is not full waits for further items.
            gather_seconds_per_item: How long it waits for each item, after the first, of the previous batch. A batch
                that follows a single item, or none for a while, does not wait.
        """
        self._name = name
        self._batch_size = batch_size
        self._gather_seconds = gather_seconds
        self._gather_seconds_per_item = gather_seconds_per_item
        self._previous_size, self._previous_end = 0, 0.0  # event loop time
        self._gathered: asyncio.Future[None] | None = None  # while a batch waits for further items
        self._waiting: list[tuple[T, asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Number of items that wait for a round trip."""
        return len(self._waiting)

    def submit(self, item: T) -> asyncio.Future[Any]:
        """Send an item with the next batch; the future receives its answer or error."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._sender is None:
            # An empty context, because a batch belongs to many callers.
            self._sender = asyncio.create_task(self._send_all(), name=self._name, context=Context())
        elif self._gathered is not None and len(self._waiting) >= self._batch_size:
            self.send_now()
        return answer

    def send_now(self) -> None:
        """Send what waits without waiting for further items."""
        if self._gathered is not None and not self._gathered.done():
            self._gathered.set_result(None)

    async def close(self) -> None:
        """Wait for the items submitted so far."""
        if self._sender is not None:
            await self._sender

    @abstractmethod
    async def _send(self, batch: list[T]) -> Sequence[Any]:
        """Send a batch and return the answer or error of each item."""

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                if self._gather_seconds:
                    await self._gather()
                batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
                await self._send_batch(batch)
        finally:
            self._sender = None

    def _wait_seconds(self) -> float:
        """Return how long to wait for further items: in proportion to the previous batch.

        A batch takes this process as long as several items. Waiting so long makes batches grow while items arrive
        faster than that, and ends with the load.
        """
        recent = asyncio.get_running_loop().time() - self._previous_end < _RECENT_SECONDS
        return min(self._gather_seconds, self._gather_seconds_per_item * (self._previous_size - 1)) if recent else 0

    async def _gather(self) -> None:
        """Wait for further items."""
        loop, seconds = asyncio.get_running_loop(), self._wait_seconds()
        if seconds <= 0 or len(self._waiting) >= self._batch_size:
            return
        self._gathered = loop.create_future()
        timer = loop.call_later(seconds, self.send_now)
        try:
            await self._gathered
        finally:
            timer.cancel()
            self._gathered = None

    async def _send_batch(self, batch: list[tuple[T, asyncio.Future[Any]]]) -> None:
        answers: Sequence[Any]
        try:
            answers = await self._send([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - every waiting caller must receive it, whatever it is
            if isinstance(error, StoreUnavailable):
                # The batches behind this one would each wait for the same timeout, one after another.
                batch, self._waiting = batch + self._waiting, []
            answers = [error] * len(batch)
        self._previous_size, self._previous_end = len(batch), asyncio.get_running_loop().time()
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
