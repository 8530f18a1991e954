"""``Membership``: assigns each service to one process, which probes it."""

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

_ANNOUNCEMENTS_PER_PERIOD: Final = 4
"""A process is still considered live after three lost announcements."""
_LEAVE_TIMEOUT_SECONDS: Final = 1.0
"""An unresponsive store must not delay the shutdown; the other processes remove this one after a period."""


class Membership:
    """The live processes, and the assignment of services to them.

    Each process announces itself in Redis several times per period; one that was silent for a period is considered
    dead. Services are assigned by rendezvous hashing (Thaler and Ravishankar, 1998) to the process with the highest
    hash for their name, so that a process that joins or leaves moves only its own share.
    """

    def __init__(self, store: RedisStore, *, period: float) -> None:
        """Create a member.

        Args:
            store: Holds the list of members.
            period: Seconds after which a silent process is considered dead.
        """
        self.id = secrets.token_hex(8)
        self._store = store
        self._period = period
        self._members: tuple[str, ...] = ()
        self._wake = asyncio.Event()

    @property
    def members(self) -> tuple[str, ...]:
        """Sorted ids of the live processes; empty until they have been read once."""
        return self._members

    def owns(self, name: str) -> bool:
        """Return whether a service is assigned to this process."""
        if len(self._members) <= 1:
            return self.id in self._members
        return assigned_member(name, self._members) == self.id

    async def run(self, on_change: Callable[[], None]) -> None:
        """Announce this process until cancelled, then remove it from the list.

        Args:
            on_change: Called whenever the members, and thus the assignment, change.
        """
        try:
            while True:
                self._wake.clear()
                await self._refresh(on_change)
                raise_if_cancelled()
                try:
                    async with asyncio.timeout(self._period / _ANNOUNCEMENTS_PER_PERIOD):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            await self._leave()

    def refresh(self) -> None:
        """Announce this process and read the list immediately."""
        self._wake.set()

    async def _refresh(self, on_change: Callable[[], None]) -> None:
        try:
            members = tuple(sorted(await self._store.writer.announce_member(self.id, self._period)))
        except StoreUnavailable:
            return  # the assignment stays: the other processes cannot read a change either
        if members != self._members:
            log.info("health checks reassigned", processes=len(members))
            self._members = members
            on_change()

    async def _leave(self) -> None:
        self._members = ()
        try:
            async with asyncio.timeout(_LEAVE_TIMEOUT_SECONDS):
                await self._store.writer.remove_member(self.id, self._period)
        except (StoreUnavailable, TimeoutError):
            log.debug("member not removed from list", period_seconds=self._period)


def assigned_member(name: str, members: tuple[str, ...]) -> str:
    """Return the member that a service is assigned to."""
    encoded = name.encode()
    return max(members, key=lambda member: _weight(member, encoded))


def _weight(member: str, name: bytes) -> bytes:
    return hashlib.blake2b(name, key=member.encode(), digest_size=8).digest()
