"""``Repairs``: what one process at a time does to a store that has lost what the processes remember."""

import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from registry_server.store.commands import Commands
from registry_server.store.failures import translated
from registry_server.store.keys import Keys
from registry_server.store.limits import StoreLimits
from registry_server.store.values import Position, StoredEvent, Unconfirmed, stored_event


class Turn(NamedTuple):
    """The right to repair, and what the store was found to be."""

    found: Position
    """Without an epoch if it had none."""
    plan: str
    """What a repair that was given up had set out to do; empty if there was none."""


class Remembered(NamedTuple):
    """A service as a process remembers it."""

    name: str
    record: bytes
    """Serialised ``Service`` with its revision; empty if it is gone."""
    ttl: float
    """Seconds that its lease lasts; 0 = permanent."""
    owner: str
    """Empty if nobody owns it, as far as is known."""


class TurnLost(Exception):
    """Another process has the turn now: nothing was written."""


class Repairs:
    """Writes past the ordinary commits; each script is refused unless it is the turn of this process.

    Methods raise ``StoreUnavailable`` while Redis does not answer, and those that write raise ``TurnLost``.
    """

    def __init__(
        self,
        commands: Commands,
        confirmed: Commands,
        tail: Redis,
        keys: Keys,
        script_keys: tuple[str, ...],
        *,
        events_max_length: int,
        limits: StoreLimits,
    ) -> None:
        self._id = secrets.token_hex(8)
        self._commands = commands
        self._confirmed = confirmed
        self._tail = tail
        self._keys = keys
        self._script_keys = (*script_keys, keys.repair)
        self._events_max_length = events_max_length
        self._gather_ms = round(limits.repair_gather_seconds * 1000)
        self._turn_ms = round(limits.repair_turn_seconds * 1000)
        self._page = limits.repair_page
        self.batch = limits.repair_batch
        """Services or events that one call of ``put_services`` or ``put_events`` takes at most."""

    async def turn(self, known: Position, found: str) -> Turn | float:
        """Asks for the turn; of those who ask within ``repair_gather_seconds``, who knows the newest revision gets it.

        Args:
            known: Where this process stands.
            found: Epoch that the store was found in, empty for none; if it is another by now, nothing happens.

        Returns:
            The turn, or seconds after which to ask again.
        """
        answer = await self._run("repair_turn", *known, self._gather_ms, self._turn_ms, found)
        if answer[0] == b"wait":
            return int(answer[1]) / 1000
        return Turn(Position(answer[1].decode(), answer[2]), answer[3].decode())

    async def put_services(self, services: Sequence[Remembered], plan: str) -> None:
        """Puts up to ``batch`` services back, or away, and keeps the plan for whoever has to go on with it."""
        flat = [value for name, record, ttl, owner in services for value in (name, record, round(ttl * 1000), owner)]
        _refuse_if_lost(await self._run("repair_services", self._turn_ms, plan, self._keys.document_prefix, *flat))

    async def put_events(self, events: Sequence[StoredEvent], *, restart: bool) -> None:
        """Appends up to ``batch`` events, to the stream as it is or, with ``restart``, to an empty one."""
        flat = [
            value
            for e in events
            for value in (e.revision, e.epoch, e.type, e.reason, e.at_ms, e.name, e.after, e.before, e.error, e.owner)
        ]
        _refuse_if_lost(await self._run("repair_events", self._turn_ms, self._events_max_length, int(restart), *flat))

    async def end(self, position: Position, *, restart: bool, known: Position, common: int) -> None:
        """Ends the repair, and waits for as many replicas as a change does.

        Args:
            position: Where the store stands from now on.
            restart: Without the events that are in the stream.
            known: What this process knew, and has put back.
            common: Newest revision at which that agreed with the store.
        """
        keys = (*self._script_keys, self._keys.merged)
        answer = await self._confirmed.script(
            "repair_end", keys, self._id, *position, int(restart), known.epoch, common, known.revision
        )
        _refuse_if_lost(answer.answer if isinstance(answer, Unconfirmed) else answer)

    async def merged(self, epoch: str) -> tuple[int, int]:
        """How much of another epoch the store has: up to which revision it agrees with it, and which it was given."""
        answer: bytes | None = await self._commands.run("HGET", self._keys.merged, epoch)
        common, newest = answer.split() if answer else (0, 0)
        return int(common), int(newest)

    async def records(self) -> AsyncIterator[dict[str, bytes]]:
        """Reads all records by their names, in pages; a name may come twice."""
        cursor = 0
        while True:
            with translated():
                answer: Any = await self._tail.hscan(self._keys.records, cursor, count=self._page)
            cursor, page = answer
            yield {name.decode(): record for name, record in page.items()}
            if cursor == 0:
                return

    async def owners(self) -> dict[str, str]:
        """Reads who owns which service."""
        with translated():
            answer: Any = await self._tail.hgetall(self._keys.owners)
        return {name.decode(): owner.decode() for name, owner in answer.items()}

    async def events_before(self, revision: int) -> AsyncIterator[list[StoredEvent]]:
        """Reads the events up to a revision, in pages, newest first."""
        start = f"{revision}-0"
        while True:
            with translated():
                page: Any = await self._tail.xrevrange(self._keys.events, start, "-", count=self._page)
            if not page:
                return
            yield [stored_event(entry_id, fields) for entry_id, fields in page]
            start = f"({page[-1][0].decode()}"

    async def _run(self, script: str, *args: Any) -> Any:
        return await self._commands.script(script, self._script_keys, self._id, *args)


def _refuse_if_lost(answer: int) -> None:
    if not answer:
        raise TurnLost
