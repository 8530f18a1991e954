"""``Transitions``: commits status changes with bounded concurrency."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from registry_server.errors import RegistryError
from registry_server.health.evaluator import Verdict
from registry_server.runtime.tasks import raise_if_cancelled

_MAX_CONCURRENT_COMMITS: Final = 64
"""Further commits would only queue in the store's pipeline."""

log = structlog.get_logger(__name__)


class Transitions:
    """Holds the newest transition of each service until it is committed, one at a time per service.

    The queue is therefore bounded by the number of services, however slow the store is. A transition that cannot be
    committed is dropped: the next probe produces it again.
    """

    def __init__(
        self, commit: Callable[[Verdict], Awaitable[bool]], *, max_concurrent: int = _MAX_CONCURRENT_COMMITS
    ) -> None:
        """Create an empty queue.

        Args:
            commit: Commits one verdict.
            max_concurrent: Maximum number of concurrent commits.
        """
        self._commit = commit
        self._max_concurrent = max_concurrent
        self._pending: dict[str, Verdict] = {}
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()  # holds each name once, even if its transition is discarded and added again
        self._in_flight: set[str] = set()

    def add_transition(self, name: str, verdict: Verdict) -> None:
        """Queue a transition; it replaces a pending one of the same service."""
        self._pending[name] = verdict
        if name not in self._in_flight:
            self._enqueue(name)

    def _enqueue(self, name: str) -> None:
        if name not in self._queued:
            self._queued.add(name)
            self._queue.put_nowait(name)

    def discard_transition(self, name: str) -> None:
        """Drop the pending transition of a service, because a newer result replaces it or the service was released."""
        self._pending.pop(name, None)

    async def run(self) -> None:
        """Commit pending transitions until cancelled, then drop the rest."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._max_concurrent):
                    group.create_task(self._commit_pending(), name="transition")
        finally:
            self._pending.clear()
            self._queued.clear()
            self._in_flight.clear()
            self._queue = asyncio.Queue()

    async def _commit_pending(self) -> None:
        while True:
            name = await self._queue.get()
            self._queued.discard(name)
            verdict = self._pending.pop(name, None)
            if verdict is None:
                continue
            self._in_flight.add(name)
            try:
                await self._commit(verdict)
            except RegistryError as error:  # the store became unavailable
                log.debug("status change not committed", service=name, reason=str(error))
            except Exception:
                # A bug must cost one result, not all of them.
                log.exception("status change not committed", service=name)
            finally:
                self._in_flight.discard(name)
            raise_if_cancelled()
            if name in self._pending:
                self._enqueue(name)
