"""``Repairs``: restores lost data to the store from a process's replica, one process at a time."""

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from registry_server.store.commands import Commands
from registry_server.store.failures import translate_errors
from registry_server.store.keys import Keys
from registry_server.store.limits import StoreLimits
from registry_server.store.retention import EventRetention
from registry_server.store.values import Position, StoredEvent, Unconfirmed


class Turn(NamedTuple):
    """The exclusive right to repair the store, and the state in which the store was found."""

    found: Position
    """Position of the store; its epoch is empty if the store had none."""
    plan: str
    """Plan of an abandoned repair that this one must finish; empty if there was none."""


class RestoredService(NamedTuple):
    """State to restore for one service."""

    name: str
    record: bytes
    """Serialised ``Service`` with its revision; empty to remove the service."""
    ttl: float
    """Length of the lease in seconds; 0 = permanent."""
    owner: str
    """Owner of the service; empty if it has none."""


class TurnLost(Exception):
    """Another process has the turn now, so nothing was written."""


class Repairs:
    """Writes that bypass commits. The scripts refuse them unless this process has the turn.

    Methods raise ``StoreUnavailable`` if Redis does not answer; methods that write raise ``TurnLost``.

    Attributes:
        batch_size: Number of services or events that one call restores at most.
    """

    def __init__(
        self,
        commands: Commands,
        confirmed: Commands,
        keys: Keys,
        *,
        retention: EventRetention,
        limits: StoreLimits,
    ) -> None:
        self._id = secrets.token_hex(8)
        self._commands = commands
        self._confirmed = confirmed
        self._keys = keys
        self._retention = retention
        self._gather_ms = round(limits.repair_gather_seconds * 1000)
        self._turn_ms = round(limits.repair_turn_seconds * 1000)
        self.batch_size = limits.repair_batch

    async def request_turn(self, known: Position, found_epoch: str) -> Turn | float:
        """Request the turn; among the processes that request it in time, the one with the newest revision receives it.

        Args:
            known: Position of this process's replica.
            found_epoch: Epoch in which the store was found, empty for none. If it has changed, the request is ignored.

        Returns:
            The turn, or the seconds after which to request it again.
        """
        terms = self._id, *known, self._gather_ms, self._turn_ms, found_epoch
        answer = await self._commands.run_script("repair_turn", *terms, keys=(self._keys.repair,))
        if answer[0] == b"wait":
            return int(answer[1]) / 1000
        with translate_errors("HMGET", self._keys.repair):
            return Turn(Position(answer[1].decode(), answer[2]), answer[3].decode())

    async def restore_services(self, services: Sequence[RestoredService], plan: str) -> None:
        """Restore or remove up to ``batch_size`` services; keep the plan for a process that must finish it."""
        await self._write("repair_services", self._turn_ms, plan, self._keys.document_prefix, *_arguments(services))

    async def restore_events(self, events: Sequence[StoredEvent], *, restart: bool) -> None:
        """Append up to ``batch_size`` events to the stream; with ``restart``, clear the stream first."""
        flat = [
            value
            for e in events
            for value in (e.revision, e.epoch, e.type, e.reason, e.at_ms, e.name, e.after, e.before, e.error, e.owner)
        ]
        await self._write("repair_events", self._turn_ms, self._retention.max_length, int(restart), *flat)

    async def finish_repair(self, position: Position, *, restart: bool, known: Position, common: int) -> None:
        """End the repair, and wait for the same number of replicas as a commit does.

        Args:
            position: Position of the store from now on.
            restart: Delete the events in the stream.
            known: Position of the replica that was restored.
            common: Newest revision up to which that replica and the store had the same history.
        """
        keys = self._keys.repair, self._keys.merged
        answer = await self._confirmed.run_script(
            "repair_end", self._id, *position, int(restart), known.epoch, common, known.revision, keys=keys
        )
        _raise_if_lost(answer.answer if isinstance(answer, Unconfirmed) else answer)

    async def read_merge(self, epoch: str) -> tuple[int, int]:
        """Return how much of another epoch was merged into the store.

        Returns:
            The newest revision of that epoch that is in the store's history, and the newest one that was merged; zeros
            if the epoch was not merged.
        """
        answer: bytes | None = await self._commands.run_command("HGET", self._keys.merged, epoch)
        with translate_errors("HGET", self._keys.merged):
            common, newest = answer.split() if answer else (0, 0)
            return int(common), int(newest)

    async def restore_missing(
        self, services: Sequence[RestoredService], applied: Position, at_ms: int | None
    ) -> int | None:
        """Write what the store lacks of up to ``batch_size`` services, although its history has all their changes.

        Args:
            services: Services as the caller holds them.
            applied: Position of the caller.
            at_ms: Commit time of that revision; ``None`` if it is not known.

        Returns:
            Number of services that were incomplete; ``None`` if the caller must catch up first.
        """
        commit_time = "" if at_ms is None else at_ms
        answer: int | None = await self._commands.run_script("restore", *applied, commit_time, *_arguments(services))
        return answer

    async def recount_owners(self) -> None:
        """Count the services of each owner again."""
        await self._commands.run_script("recount")

    async def _write(self, script: str, *args: Any) -> None:
        _raise_if_lost(await self._commands.run_script(script, self._id, *args, keys=(self._keys.repair,)))


def _arguments(services: Sequence[RestoredService]) -> list[Any]:
    return [value for name, record, ttl, owner in services for value in (name, record, round(ttl * 1000), owner)]


def _raise_if_lost(answer: int) -> None:
    if not answer:
        raise TurnLost
