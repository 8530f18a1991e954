"""``Membership``: which process checks which service."""

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from typing import Final

import structlog

from registry_server.errors import StoreUnavailable
from registry_server.runtime.tasks import raise_if_cancelled
from registry_server.store import RedisStore

log = structlog.get_logger(__name__)

_BEATS_PER_PERIOD: Final = 4
_LEAVE_WITHIN: Final = 1.0
"""Seconds."""


class Membership:
    """The live processes, and how services are shared out among them.

    Each process tells Redis several times a period that it lives; one that was silent for a period is gone. Services
    are shared out by rendezvous hashing (Thaler and Ravishankar, 1998): each goes to the process whose hash with its
    name is highest, so that a process that comes or goes moves no other service.
    """

    def __init__(self, store: RedisStore, *, period: float) -> None:
        """Prepares it.

        Args:
            store: Where the list is.
            period: Seconds after which a silent process is taken for dead.
        """
        self.id = secrets.token_hex(8)
        self._store = store
        self._period = period
        self._members: tuple[str, ...] = ()
        self._wake = asyncio.Event()

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the live processes, sorted; empty until the store has told."""
        return self._members

    def owns(self, name: str) -> bool:
        """Whether this process checks a service."""
        if len(self._members) <= 1:
            return self.id in self._members
        return owner(name, self._members) == self.id

    async def run(self, on_change: Callable[[], None]) -> None:
        """Keeps this process on the list until cancelled, then takes it off.

        Args:
            on_change: Called when the shares have changed.
        """
        try:
            while True:
                self._wake.clear()
                await self._refresh(on_change)
                raise_if_cancelled()
                try:
                    async with asyncio.timeout(self._period / _BEATS_PER_PERIOD):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            await self._leave()

    def refresh(self) -> None:
        """Has the list read again at once: this process may have been taken for dead."""
        self._wake.set()

    async def _refresh(self, on_change: Callable[[], None]) -> None:
        try:
            members = tuple(sorted(await self._store.writer.announce_member(self.id, self._period)))
        except StoreUnavailable:
            return  # shares stay as they are: nobody else can learn of a change either
        if members != self._members:
            log.info("services to check are shared out", processes=len(members))
            self._members = members
            on_change()

    async def _leave(self) -> None:
        self._members = ()
        try:
            async with asyncio.timeout(_LEAVE_WITHIN):
                await self._store.writer.remove_member(self.id, self._period)
        except (StoreUnavailable, TimeoutError):
            log.debug("could not leave the list of processes; the others will notice")


def owner(name: str, members: tuple[str, ...]) -> str:
    """The member to which a service goes."""
    encoded = name.encode()
    return max(members, key=lambda member: _weight(member, encoded))


def _weight(member: str, name: bytes) -> bytes:
    return hashlib.blake2b(name, key=member.encode(), digest_size=8).digest()
