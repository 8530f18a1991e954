"""``Renewals``: one call of ``renew.lua`` renews the leases of many heartbeats, each of them independently."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from registry_server.store.batches import Batches
from registry_server.store.commands import Commands
from registry_server.store.limits import StoreLimits

_MAX_BEATS: Final = 250


class Beat(NamedTuple):
    """Leases that are renewed together."""

    owner: str
    """The only owner whose services are renewed; empty = all."""
    names: Sequence[str]
    """At most as many as one call of the script may renew."""


class Renewals(Batches[Beat]):
    """Sends heartbeats in groups.

    A round trip for each of them would take a sixth of the time of a ``KeepAlive`` message (measured). Heartbeats of
    agents that send one every few seconds wait for others; a caller that sends the next one after each answer does not.
    """

    def __init__(self, commands: Commands, document_prefix: str, limits: StoreLimits) -> None:
        """Create an empty queue.

        Args:
            commands: Pipeline to send the groups to.
            document_prefix: Key of a service's document, without the service's name.
            limits: Size of a group, and how long heartbeats wait for others.
        """
        super().__init__("store-renewals", _MAX_BEATS, gather_seconds=limits.renew_gather_seconds)
        self._commands = commands
        self._document_prefix = document_prefix
        self._max_names = limits.renew_batch
        self._urgent = False

    async def submit_beat(self, beat: Beat, *, may_wait: bool) -> Any:
        """Send a heartbeat with the next group and return the script's answer for it.

        Args:
            beat: The leases.
            may_wait: Whether the group may wait for other heartbeats.

        Raises:
            StoreUnavailable: Redis did not answer; the leases may or may not have been renewed.
        """
        self._commands.raise_if_stalled()
        if not may_wait:
            self._urgent = True
            self.send_now()
        answer = self.submit(beat)
        with self._commands.trace_script("renew"):
            return await answer

    def _wait_seconds(self) -> float:
        return 0 if self._urgent else self._gather_seconds

    async def _send(self, batch: list[Beat]) -> Sequence[Any]:
        self._urgent = False
        calls: list[list[Any]] = []
        room = 0
        for owner, names in batch:
            if len(names) > room:
                calls.append([])
                room = self._max_names
            room -= len(names)
            calls[-1] += (owner, len(names), *names)
        scripts = [self._commands.run_script("renew", self._document_prefix, *call) for call in calls]
        # A task for a single script, as in most groups, would take 10 µs.
        answers = [await scripts[0]] if len(scripts) == 1 else await asyncio.gather(*scripts)
        return [one for answer in answers for one in answer]
