"""``StoreReader``: reads from Redis, mainly for the follower."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

from registry_server.errors import StoreUnavailable
from registry_server.store.commands import Commands
from registry_server.store.connecting import STALL_SECONDS, Connections
from registry_server.store.failures import translate_errors
from registry_server.store.foreign_documents import holds_documents
from registry_server.store.keys import Keys
from registry_server.store.limits import StoreLimits
from registry_server.store.values import DamagedEvent, Position, StoredEvent, parse_event

_MAX_FOREIGN_PAGES: Final = 100
"""Pages of 500 keys that are searched for documents of another registry."""


class StoreReader:
    """Reads positions, records, events, probe results and owners.

    Methods raise ``StoreUnavailable`` if Redis does not answer.

    Attributes:
        stream_client: Client of the follower, for its scans and its blocking reads of the stream. Another task must not
            use it: a second connection looks like a lost one.
    """

    def __init__(self, commands: Commands, connections: Connections, keys: Keys, limits: StoreLimits) -> None:
        self._commands = commands
        self._connections = connections
        self._keys = keys
        self._limits = limits
        self.stream_client = connections.client(
            extra_timeout=limits.tail_block_seconds, on_open=self._count_stream_connection
        )
        # ``wait_for_events`` trusts the stream only while these are equal.
        self._opened_connections = self._verified_connections = 0

    async def verify_connection(self) -> None:
        """Connect to the stream if necessary, and accept events from this connection from now on."""
        with translate_errors("PING"):
            await self.stream_client.ping()
        self._verified_connections = self._opened_connections

    async def close(self) -> None:
        """Close the connection to the stream."""
        await self.stream_client.aclose()

    async def read_position(self) -> Position:
        """Return the newest position; its epoch is empty if the store was emptied or is being repaired."""
        epoch, revision = await self._commands.run_command("MGET", self._keys.epoch, self._keys.revision)
        with translate_errors("MGET", self._keys.epoch):
            # A revision that is no number is behind that of any process, as in the scripts.
            return Position((epoch or b"").decode(), int(revision) if revision and revision.isdigit() else 0)

    async def share_value(self, key: str, own: bytes) -> bytes:
        """Return the value of a key that all processes share; store ``own`` if there is none."""
        try:
            stored: bytes | None = await self._commands.run_command("GET", key)
            if stored is None:
                await self._commands.run_command("SET", key, own, "NX")
                stored = await self._commands.run_command("GET", key)
        except StoreUnavailable:
            return own  # until the next connect
        return stored or own

    async def resolve_head(self, known: Position | None = None, *, rewritten: bool = False) -> Position:
        """Return the newest position; start a new epoch if the history cannot continue and no repair is in progress.

        Args:
            known: A position that existed: if the store is behind it, the store's epoch ends.
            rewritten: The revisions up to ``known`` now belong to other changes: the epoch ends in any case.
        """
        epoch, revision = await self._commands.run_script(
            "head",
            secrets.token_hex(8),
            known.epoch if known else "",
            known.revision if known else 0,
            int(rewritten),
            keys=(self._keys.repair,),
        )
        with translate_errors("GET", self._keys.epoch):
            return Position(epoch.decode(), revision)

    async def scan_records(self) -> AsyncIterator[dict[bytes, bytes]]:
        """Yield pages of all serialised records by the name of their service.

        A scan is not a snapshot: it may miss concurrent changes and return a name twice.
        """
        cursor = 0
        while True:
            with translate_errors("HSCAN", self._keys.records):
                answer: Any = await self.stream_client.hscan(self._keys.records, cursor, count=self._limits.page)
            cursor, page = answer
            yield page
            if cursor == 0:
                return

    async def scan_events(
        self, until: int, *, since: int = 0, newest_first: bool = False
    ) -> AsyncIterator[list[StoredEvent]]:
        """Yield pages of the events in the stream up to a revision, oldest first by default, without damaged ones."""
        read: Any = self.stream_client.xrange
        start, end = f"{max(since, 0)}-0", f"{until}-0"
        if newest_first:
            read, start, end = self.stream_client.xrevrange, end, start
        while True:
            with translate_errors("XREVRANGE" if newest_first else "XRANGE", self._keys.events):
                page: Any = await read(self._keys.events, start, end, count=self._limits.page)
            if not page:
                return
            events = []
            for entry_id, fields in page:
                with suppress(DamagedEvent):
                    events.append(parse_event(entry_id, fields))
            if events:
                yield events
            start = f"({page[-1][0].decode()}"

    async def read_event(self, revision: int) -> StoredEvent | None:
        """Return the event of a revision, or ``None`` if the stream does not contain it or it is damaged."""
        with translate_errors("XRANGE", self._keys.events):
            page: Any = await self.stream_client.xrange(self._keys.events, f"{revision}-0", f"{revision}-0")
        with suppress(DamagedEvent):
            return parse_event(*page[0]) if page else None
        return None

    async def read_events_before(self, revision: int, count: int) -> list[StoredEvent]:
        """Return up to ``count`` of the newest events before a revision, newest first, without damaged ones."""
        page = await self._commands.run_command(
            "XREVRANGE", self._keys.events, f"{revision - 1}-0", "-", "COUNT", count
        )
        events = []
        for entry_id, fields in page:
            with suppress(DamagedEvent):
                events.append(parse_event(entry_id, fields))
        return events

    async def read_oldest_event(self) -> tuple[int, int]:
        """Return revision and time in ms of the oldest event in the stream; zeros if it is empty or damaged."""
        page = await self._commands.run_command("XRANGE", self._keys.events, "-", "+", "COUNT", 1)
        for entry_id, fields in page:
            at_ms = fields.get(b"t", b"")
            return int(entry_id.partition(b"-")[0]), int(at_ms) if at_ms.isdigit() else 0
        return 0, 0

    async def wait_for_events(self, after: int, *, wait: bool = True) -> list[StoredEvent]:
        """Return events after a revision; wait ``tail_block_seconds`` for the first one, if requested.

        Raises:
            DamagedEvent: The first of them is damaged.
            StoreUnavailable: Also if redis-py opened another connection: the server behind it may have another history.
                Call ``RedisStore.reconnect`` and verify the history.
        """
        sent, replacements = time.monotonic(), self._connections.replacements
        with translate_errors("XREAD", self._keys.events):
            answer: Any = await self.stream_client.xread(
                {self._keys.events: f"{after}-0"},
                count=self._limits.tail_page,
                block=round(self._limits.tail_block_seconds * 1000) if wait else None,
            )
            if time.monotonic() - sent > self._limits.tail_block_seconds + STALL_SECONDS:
                await self._connections.check_primary()
        if self._connections.replacements != replacements:
            raise StoreUnavailable("another primary was chosen before the previous one answered")
        if self._opened_connections != self._verified_connections:
            raise StoreUnavailable("the connection to the store was lost")
        events: list[StoredEvent] = []
        for entry_id, fields in (entry for _, entries in answer for entry in entries):
            try:
                events.append(parse_event(entry_id, fields))
            except DamagedEvent:
                if not events:
                    raise
                break
        return events

    async def read_check(self, name: str) -> tuple[bytes | None, int | None]:
        """Read the newest probe result of a service and the end of its lease.

        Returns:
            Serialised ``Health`` or ``None``; ms since the Unix epoch by the clock of Redis, ``None`` if the service is
            permanent.
        """
        check, deadline = await asyncio.gather(
            self._commands.run_command("HGET", self._keys.checks, name),
            self._commands.run_command("ZSCORE", self._keys.leases, name),
        )
        ends = None if deadline is None else float(deadline)
        return check, None if ends is None or ends == float("inf") else int(ends)

    async def read_owner(self, name: str) -> str | None:
        """Return the owner of a service, or ``None`` if it has no owner."""
        owner = await self._commands.run_command("HGET", self._keys.owners, name)
        return None if owner is None else str(owner.decode(errors="replace"))

    async def read_owners(self) -> dict[str, str]:
        """Return the owner of every service that has one."""
        with translate_errors("HGETALL", self._keys.owners):
            answer: Any = await self.stream_client.hgetall(self._keys.owners)
        return {name.decode(errors="replace"): owner.decode(errors="replace") for name, owner in answer.items()}

    async def holds_foreign_documents(self) -> bool:
        """Return whether the OSSA reference implementation left documents under the key prefix, as far as was read."""
        client = self._connections.client()
        try:
            return await holds_documents(client, self._keys.document_prefix, _MAX_FOREIGN_PAGES)
        finally:
            await client.aclose()

    def _count_stream_connection(self) -> None:
        self._opened_connections += 1
