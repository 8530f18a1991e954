"""``Transitions``: commits what results of probes change, a bounded number at once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from registry_server.errors import RegistryError
from registry_server.health.evaluator import Verdict
from registry_server.runtime.tasks import raise_if_cancelled

_AT_ONCE: Final = 64
"""Commits under way; more would only wait in each other's pipeline."""

log = structlog.get_logger(__name__)


class Transitions:
    """Holds the newest transition of each service until it is committed, one after the other of each.

    So what waits is bounded by the number of services, however slow the store is. One that cannot be committed is
    dropped: the next probe tells again.
    """

    def __init__(self, commit: Callable[[Verdict], Awaitable[bool]]) -> None:
        """Prepares it; ``commit`` is what ``HealthEvaluator.commit`` is."""
        self._commit = commit
        self._waiting: dict[str, Verdict] = {}
        self._turns: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()  # each name once, though what waits of it is discarded and comes again
        self._under_way: set[str] = set()

    def put(self, name: str, ruling: Verdict) -> None:
        """Takes a transition; it replaces one of the same service that waits."""
        self._waiting[name] = ruling
        if name not in self._under_way:
            self._queue(name)

    def _queue(self, name: str) -> None:
        if name not in self._queued:
            self._queued.add(name)
            self._turns.put_nowait(name)

    def discard(self, name: str) -> None:
        """Drops what waits of a service: something newer is known, or it is gone."""
        self._waiting.pop(name, None)

    async def run(self) -> None:
        """Commits what waits, until cancelled; what waits then is dropped."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(self._work(), name="transition")
        finally:
            self._waiting.clear()
            self._queued.clear()
            self._under_way.clear()
            self._turns = asyncio.Queue()

    async def _work(self) -> None:
        while True:
            name = await self._turns.get()
            self._queued.discard(name)
            ruling = self._waiting.pop(name, None)
            if ruling is None:
                continue
            self._under_way.add(name)
            try:
                await self._commit(ruling)
            except RegistryError as error:  # the store went away meanwhile
                log.debug("result of a probe was not kept", service=name, why=str(error))
            except Exception:
                # Ours to mend; it must cost one result, not all of them.
                log.exception("result of a probe was lost", service=name)
            finally:
                self._under_way.discard(name)
            raise_if_cancelled()
            if name in self._waiting:
                self._queue(name)
