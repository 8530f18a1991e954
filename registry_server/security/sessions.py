"""``Sessions``: open streams, which end when their caller is no longer authorised."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol, TypeAlias

import structlog

from registry_server.errors import CursorExpired, RegistryError, Unauthenticated
from registry_server.security.authenticator import Credentials
from registry_server.security.identity import Identity
from registry_server.security.permissions import READ, Permission

MAX_VERIFY_SECONDS: Final = 0.8
"""Time limit for an issuer's keys during a recheck; streams that it leaves undecided are ended within a second."""
_STEPS_PER_TURN: Final = 50
"""Streams that are ended, or credentials that are verified, in one turn of the event loop: about 10 ms (measured)."""

log = structlog.get_logger(__name__)


class Caller(Protocol):
    """A call, as far as admission needs to know."""

    caller_key: tuple[str, str]
    """Key for its limits, set by the guard."""

    @abstractmethod
    def address(self) -> str:
        """Return the address of the caller, without its port."""

    @abstractmethod
    def credentials(self) -> Credentials:
        """Return what the caller presented.

        Raises:
            Unauthenticated: It presented several credentials.
        """


class Session:
    """An open stream with its current identity; ends when that identity is no longer authorised."""

    def __init__(self, caller: Caller, identity: Identity, permission: Permission) -> None:
        self.caller, self.permission = caller, permission
        self.ended: asyncio.Future[RegistryError] = asyncio.get_running_loop().create_future()
        """Its result is the reason why the stream must end."""
        self._timer: asyncio.TimerHandle | None = None
        self.set_identity(identity)

    def on_end(self, end: Callable[[RegistryError], object]) -> None:
        """Call a function that ends the stream once the session has ended."""
        self.ended.add_done_callback(lambda ended: end(ended.result()))

    def set_identity(self, identity: Identity) -> None:
        """Set the identity, and end the session when its credential expires."""
        self.identity = identity
        self.cancel_expiry()
        if identity.expires is not None:
            remaining = max(0.0, identity.expires - time.time())
            expired = Unauthenticated("the credential has expired")
            self._timer = asyncio.get_running_loop().call_later(remaining, self.end, expired)

    def cancel_expiry(self) -> None:
        """Cancel the timer that ends the session."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self, reason: RegistryError) -> None:
        """End the stream."""
        if not self.ended.done():
            self.ended.set_result(reason)


_Outcome: TypeAlias = Identity | RegistryError
"""Identity of credentials, or why they are not accepted."""


class Sessions:
    """All open streams of the process."""

    def __init__(self) -> None:
        self._open: set[Session] = set()

    @contextmanager
    def open(self, caller: Caller, identity: Identity, permission: Permission) -> Iterator[Session]:
        """Track a stream of an admitted caller while the context is active."""
        session = Session(caller, identity, permission)
        self._open.add(session)
        try:
            yield session
        finally:
            self._open.discard(session)
            session.cancel_expiry()

    async def recheck(
        self,
        verify: Callable[[Credentials], Awaitable[Identity]],
        permit: Callable[[Identity, Permission], None],
        public: frozenset[str],
    ) -> None:
        """Set the identity that the credentials of every stream have now, and end those that are no longer authorised.

        A stream whose credentials cannot be verified is ended too.

        Args:
            verify: Returns the identity of credentials, or raises.
            permit: Raises if an identity lacks a permission.
            public: Parts whose streams need no credential.
        """
        sessions = [session for session in self._open if session.permission.part not in public]
        try:
            by_credentials = await self._grouped(sessions)
            async with asyncio.TaskGroup() as group:
                outcomes: asyncio.Queue[tuple[Credentials, _Outcome]] = asyncio.Queue()
                group.create_task(_verify_all(by_credentials, verify, outcomes))
                decided = 0
                for _ in by_credentials:
                    credentials, outcome = await outcomes.get()
                    for session in by_credentials[credentials]:
                        if session in self._open:  # it may have been closed in the meantime
                            _decide(session, outcome, permit)
                        decided += 1
                        if decided % _STEPS_PER_TURN == 0:
                            await asyncio.sleep(0)
        except Exception:
            log.exception("stream authorisation recheck failed")
            for session in sessions:
                session.end(Unauthenticated("the credential could not be verified against the new policy"))

    async def _grouped(self, sessions: list[Session]) -> Mapping[Credentials, list[Session]]:
        by_credentials: dict[Credentials, list[Session]] = {}
        for number, session in enumerate(sessions, 1):
            if session in self._open:  # gRPC has freed the metadata of ended calls
                by_credentials.setdefault(session.caller.credentials(), []).append(session)
            if number % (10 * _STEPS_PER_TURN) == 0:
                await asyncio.sleep(0)
        return by_credentials


def _decide(session: Session, outcome: _Outcome, permit: Callable[[Identity, Permission], None]) -> None:
    try:
        if isinstance(outcome, RegistryError):
            raise outcome
        permit(outcome, session.permission)
        if session.permission is READ and outcome.visibility != session.identity.visibility:
            raise CursorExpired("the policy has changed what this caller sees")
    except RegistryError as error:
        session.end(error)
    else:
        session.set_identity(outcome)


async def _verify_all(
    by_credentials: Mapping[Credentials, object],
    verify: Callable[[Credentials], Awaitable[Identity]],
    outcomes: "asyncio.Queue[tuple[Credentials, _Outcome]]",
) -> None:
    """Verify credentials concurrently: an issuer that does not respond must not delay the others."""

    async def verify_one(credentials: Credentials) -> None:
        outcome: _Outcome
        try:
            async with asyncio.timeout(MAX_VERIFY_SECONDS):
                outcome = await verify(credentials)
        except RegistryError as error:
            outcome = error
        except TimeoutError:
            outcome = Unauthenticated("the credential could not be verified in time")
        outcomes.put_nowait((credentials, outcome))

    async with asyncio.TaskGroup() as group:
        for number, credentials in enumerate(by_credentials, 1):
            group.create_task(verify_one(credentials))
            if number % _STEPS_PER_TURN == 0:
                await asyncio.sleep(0)
