"""``Transitions``: commits status changes with bounded concurrency."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import islice
from typing import Final

import structlog

from registry_server.errors import RegistryError, StoreUnavailable
from registry_server.health.evaluator import Verdict
from registry_server.runtime.fair_slots import FairSlots

_MAX_CONCURRENT_COMMITS: Final = 128
"""Further commits would only queue in the store's pipeline. One owner uses less than half."""
_RETRY_SECONDS: Final = 5.0
_MAX_RETRIES: Final = 500
"""Refused commits that are repeated at a time: an attempt costs about as much as a call."""

log = structlog.get_logger(__name__)


class Transitions:
    """Holds the newest transition of each service until it is committed, one at a time per service.

    The queue is therefore bounded by the number of services, however slow the store is. The owners of the services
    share the commits fairly. A transition that a limit refuses is repeated after a while, in its newest form; the next
    probe would repeat it too, but too soon or only a day later.
    """

    def __init__(
        self,
        commit: Callable[[Verdict], Awaitable[bool]],
        *,
        max_concurrent: int = _MAX_CONCURRENT_COMMITS,
        retry_seconds: float = _RETRY_SECONDS,
    ) -> None:
        """Create an empty queue.

        Args:
            commit: Commits one verdict.
            max_concurrent: Maximum number of concurrent commits; ``FairSlots`` divides them among the owners.
            retry_seconds: Seconds until refused commits are repeated.
        """
        self._commit = commit
        self._max_concurrent = max_concurrent
        self._retry_seconds = retry_seconds
        self._group: asyncio.TaskGroup | None = None
        self._reset()

    def _reset(self) -> None:
        self._slots = FairSlots(self._max_concurrent, max_waiting=sys.maxsize)  # at most one for each service
        self._pending: dict[str, Verdict] = {}
        self._queued: dict[str, tuple[str, int]] = {}  # services that wait for a slot: owner and ticket
        self._in_flight: set[str] = set()
        self._refused: dict[str, Verdict] = {}

    def add_transition(self, name: str, verdict: Verdict) -> bool:
        """Queue a transition; it replaces a pending one of the same service.

        Returns:
            Whether it is committed as soon as possible; False if it waits because an earlier one was refused.
        """
        if name in self._refused:
            self._refused[name] = verdict
            return False
        self._pending[name] = verdict
        if name not in self._in_flight and name not in self._queued and self._group is not None:
            start = partial(self._start_commit, self._group, name, verdict.owner)
            if ticket := self._slots.request(verdict.owner, start):
                self._queued[name] = verdict.owner, ticket
        return True

    def discard_transition(self, name: str) -> None:
        """Drop the pending transition of a service, because a newer result replaces it or the service was released."""
        self._pending.pop(name, None)
        self._refused.pop(name, None)
        if name in self._queued:
            self._slots.withdraw(*self._queued.pop(name))

    async def run(self) -> None:
        """Commit pending transitions until cancelled, then drop the rest."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
                    while True:
                        await asyncio.sleep(self._retry_seconds)
                        for name in list(islice(self._refused, _MAX_RETRIES)):
                            self.add_transition(name, self._refused.pop(name))
                finally:
                    self._group = None
                    for name in list(self._queued):  # none may start while the group ends
                        self.discard_transition(name)
        finally:
            self._reset()

    def _start_commit(self, group: asyncio.TaskGroup, name: str, owner: str) -> None:
        self._queued.pop(name, None)
        self._in_flight.add(name)
        commit = group.create_task(self._commit_pending(name), name="transition")
        commit.add_done_callback(partial(self._end_commit, name, owner))

    def _end_commit(self, name: str, owner: str, _: asyncio.Task[None]) -> None:
        self._in_flight.discard(name)
        self._slots.release(owner)
        if name in self._pending:
            self.add_transition(name, self._pending[name])

    async def _commit_pending(self, name: str) -> None:
        verdict = self._pending.pop(name, None)
        if verdict is None:
            return
        try:
            await self._commit(verdict)
        except RegistryError as error:
            log.debug("status change not committed", service=name, reason=str(error))
            if not isinstance(error, StoreUnavailable):  # after an outage, earlier results do not count
                self._refused[name] = self._pending.pop(name, verdict)
        except Exception:
            # A bug must cost one result, not all of them.
            log.exception("status change not committed", service=name)
