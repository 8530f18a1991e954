"""``Membership``: which process checks which service."""

import asyncio
import hashlib
import secrets
from collections.abc import Callable

import structlog

from registry_server.errors import StoreUnavailable
from registry_server.store import RedisStore

log = structlog.get_logger(__name__)

_BEATS_PER_PERIOD = 3


class Membership:
    """The live processes, and how services are shared out among them.

    Each process tells Redis that it lives three times a period; one that was silent for a period is gone. Services are
    shared out by rendezvous hashing (Thaler and Ravishankar, 1998): each goes to the process whose hash with its name
    is highest, so that a process that comes or goes moves no other service.
    """

    def __init__(self, store: RedisStore, *, period: float, on_change: Callable[[], None]) -> None:
        """Prepares it.

        Args:
            store: Where the list is.
            period: Seconds after which a silent process is taken for dead.
            on_change: Called when the shares have changed.
        """
        self.id = secrets.token_hex(8)
        self._store = store
        self._period = period
        self._on_change = on_change
        self._members: tuple[str, ...] = ()
        self._keys: list[tuple[bytes, str]] = []

    @property
    def members(self) -> tuple[str, ...]:
        """Ids of the live processes, sorted; empty until the store has told."""
        return self._members

    def owns(self, name: str) -> bool:
        """Whether this process checks a service."""
        if len(self._members) <= 1:
            return self.id in self._members
        encoded = name.encode()
        return max(self._keys, key=lambda member: _weight(member[0], encoded))[1] == self.id

    async def run(self) -> None:
        """Keeps this process on the list until cancelled, then takes it off."""
        try:
            while True:
                try:
                    await self.refresh()
                except StoreUnavailable:
                    pass  # shares stay as they are: nobody else can learn of a change either
                await asyncio.sleep(self._period / _BEATS_PER_PERIOD)
        finally:
            await self._leave()

    async def refresh(self) -> None:
        """Tells that this process lives, and learns who else does."""
        members = tuple(sorted(await self._store.stay_member(self.id, self._period)))
        if members != self._members:
            log.info("checks are shared out anew", processes=len(members))
            self._members = members
            self._keys = [(hashlib.blake2b(member.encode(), digest_size=16).digest(), member) for member in members]
            self._on_change()

    async def _leave(self) -> None:
        self._members = ()
        try:
            async with asyncio.timeout(1):
                await self._store.leave_members(self.id, self._period)
        except (StoreUnavailable, TimeoutError):
            log.debug("could not leave the list of processes; the others will notice")


def _weight(member: bytes, name: bytes) -> bytes:
    return hashlib.blake2b(name, key=member, digest_size=8).digest()
