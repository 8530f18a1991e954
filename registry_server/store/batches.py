"""``Batches``: what many tasks send to Redis during one round trip shares the next one."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar

from registry_server.errors import StoreUnavailable
from registry_server.runtime.tasks import wait_until_idle

T = TypeVar("T")


class Batches(ABC, Generic[T]):
    """Sends items in batches, one batch at a time, in the order in which the items were submitted."""

    def __init__(self, name: str, batch_size: int, gather_seconds: float = 0.0) -> None:
        """Create an empty queue.

        Args:
            name: Name of the task that sends.
            batch_size: Maximum number of items in a batch.
            gather_seconds: How long a batch that is not full waits for further items while the event loop is busy.
        """
        self._name = name
        self._batch_size = batch_size
        self._gather_seconds = gather_seconds
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
        return answer

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
                if self._gather_seconds and len(self._waiting) < self._batch_size:
                    await wait_until_idle(self._gather_seconds)
                batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
                await self._send_batch(batch)
        finally:
            self._sender = None

    async def _send_batch(self, batch: list[tuple[T, asyncio.Future[Any]]]) -> None:
        answers: Sequence[Any]
        try:
            answers = await self._send([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - every waiting caller must receive it, whatever it is
            if isinstance(error, StoreUnavailable):
                # The batches behind this one would each wait for the same timeout, one after another.
                batch, self._waiting = batch + self._waiting, []
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
