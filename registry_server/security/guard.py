"""``Guard``: stands before every call. Tells who calls, whether they may, and whether it is too much."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from registry_server.config import LimitSettings, SecuritySettings
from registry_server.errors import (
    ConfigurationError,
    PermissionDenied,
    RateLimited,
    RegistryError,
    Unauthenticated,
)
from registry_server.runtime.tasks import cancel
from registry_server.security.authenticator import Authenticator, Credentials
from registry_server.security.identity import ANONYMOUS, UNCHECKED, Identity, Limits, Role, current_identity
from registry_server.security.jwt_tokens import Refused
from registry_server.security.limits import Buckets, Gauge, InFlight
from registry_server.security.permissions import HEALTH, Permission
from registry_server.security.policy import read_policy

VERIFICATIONS_PER_SECOND: Final = 100.0
VERIFICATION_BURST: Final = 1_000
"""How many credentials that are not known yet one address may show: a signature takes a hundred times longer to verify
than to make up. What was verified is remembered, and not counted."""
_BETWEEN_LINES: Final = 1.0
"""Seconds between two lines of the log for the same reason."""

log = structlog.get_logger(__name__)

Peer = Callable[[], str]
"""Gives the address of the other end, without its port."""


class Session:
    """A stream that is open: whose it is now, and how it ends when its caller may no longer have it."""

    def __init__(self, identity: Identity, presented: Credentials, permission: Permission, peer: Peer) -> None:
        self.identity = identity
        self.presented, self.permission, self.peer = presented, permission, peer
        self.over: RegistryError | None = None
        """Why it has to end; ``None`` while it may go on."""
        self._end: Callable[[RegistryError], object] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def on_end(self, end: Callable[[RegistryError], object]) -> None:
        """Says what ends the stream; called at once if it is over already."""
        self._end = end
        if self.over is not None:
            end(self.over)

    def belong_to(self, identity: Identity) -> None:
        """Says whose it is from now on; it ends when their credential does."""
        self.identity = identity
        self.forget_end()
        if identity.expires is not None:
            left = max(0.0, identity.expires - time.time())
            why = Unauthenticated("the credential has expired")
            self._timer = asyncio.get_running_loop().call_later(left, self.end, why)

    def forget_end(self) -> None:
        """Forgets when it would end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def end(self, why: RegistryError) -> None:
        """Ends the stream."""
        if self.over is None:
            self.over = why
            if self._end is not None:
                self._end(why)


class Guard:
    """Admits calls, and holds the policy that says which."""

    def __init__(self, security: SecuritySettings, limits: LimitSettings) -> None:
        """Reads the policy.

        Raises:
            ConfigurationError: Something is wrong with it.
        """
        self._file = security.policy_file
        self._public = frozenset(security.public)
        self.stream_idle = float(limits.stream_idle_seconds)
        """Seconds that a stream may stay open without a message of its client."""
        self._general = Limits(
            limits.requests_per_second, limits.request_burst, limits.watches_per_caller, limits.services_per_owner
        )
        self._buckets = Buckets()
        self._verifications = Buckets()
        self.in_flight = InFlight(limits.calls, limits.call_bytes)
        """What is under way of all callers."""
        self._streams = {True: Gauge("watches", limits.watches), False: Gauge("keep-alive-streams", limits.watches)}
        self._sessions: set[Session] = set()
        self._told: dict[str, tuple[float, int]] = {}
        self._checking: asyncio.Task[None] | None = None
        self._authenticator = self._read(self._file) if self._file else None

    @property
    def checks(self) -> bool:
        """Whether callers have to say who they are."""
        return self._authenticator is not None

    async def admit(self, presented: Credentials, permission: Permission, peer: Peer) -> Identity:
        """Lets a call in.

        Args:
            presented: What the caller shows.
            permission: What the call needs.
            peer: Address of the caller.

        Returns:
            Who calls; ``UNCHECKED`` where nobody has to say.

        Raises:
            Unauthenticated: The credential is not good, or one is needed.
            PermissionDenied: The role does not allow it.
            RateLimited: Too many calls.
            IssuerUnavailable: The keys of a token's issuer cannot be had.
        """
        identity = self.admit_known(presented, permission, peer)
        if identity is None:
            identity = await self._identity(presented, permission, peer)
            self.charge(identity, peer)
        return identity

    def admit_known(self, presented: Credentials, permission: Permission, peer: Peer) -> Identity | None:
        """Lets in who is known and may; the way of almost every call, which costs microseconds.

        Returns:
            Who calls; ``None``: ask ``admit``.

        Raises:
            RateLimited: Too many calls.
        """
        authenticator = self._authenticator
        if authenticator is None:
            if permission.part != HEALTH:
                self.charge(UNCHECKED, peer)
            return UNCHECKED
        if permission.part in self._public:
            return _PUBLIC
        identity = authenticator.known(presented)
        if identity is None or identity.role < permission.least:
            return None
        self.charge(identity, peer)
        return identity

    def charge(self, identity: Identity, peer: Peer) -> None:
        """Counts a call.

        Raises:
            RateLimited: Too many calls.
        """
        limits = identity.limits or self._general
        self._buckets.take(_caller(identity, peer), limits.requests_per_second, limits.burst)

    @contextmanager
    def session(
        self, identity: Identity, presented: Credentials, permission: Permission, peer: Peer, *, watches: bool
    ) -> Iterator[Session]:
        """Looks after a stream for as long as it is open: it ends when its credential does or the policy changes.

        Args:
            identity: Who was admitted.
            presented: By what.
            permission: For what.
            peer: Address of the caller.
            watches: Whether it counts as a watch; else it does as a stream of heartbeats.

        Raises:
            LimitExceeded: The caller has too many of them, or the server.
        """
        session = Session(identity, presented, permission, peer)
        limits = identity.limits or self._general
        streams = self._streams[watches]
        with streams.one(_caller(identity, peer), limits.watches), self._looked_after(session):
            yield session

    @contextmanager
    def _looked_after(self, session: Session) -> Iterator[None]:
        self._sessions.add(session)
        session.belong_to(session.identity)
        try:
            yield
        finally:
            self._sessions.discard(session)
            session.forget_end()

    def reload(self) -> None:
        """Reads the policy again; keeps the old one, and logs what is wrong, if that fails.

        Open streams go on if the new policy lets their caller in, and end within a moment if not.
        """
        if self._file is None:
            return
        try:
            self._authenticator = self._read(self._file)
        except ConfigurationError as error:
            problems = str(error).splitlines()
            log.error("the policy was not read again; the old one stays", problems=problems)  # noqa: TRY400 - told in full
            return
        log.info("policy read again", file=str(self._file))
        previous = self._checking
        self._checking = asyncio.create_task(self._check_again(previous), name="policy-check")

    async def close(self) -> None:
        """Ends what runs in the background."""
        if self._checking is not None:
            await cancel([self._checking])

    async def _check_again(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await cancel([previous])
        for session in list(self._sessions):
            try:
                identity = await self._identity(session.presented, session.permission, session.peer)
                if session in self._sessions:  # it may have been closed meanwhile
                    session.belong_to(identity)
            except RateLimited:
                continue  # says nothing about the credential
            except RegistryError as error:
                session.end(error)
            except Exception:
                log.exception("a stream could not be checked against the new policy; it ends")
                session.end(Unauthenticated("the credential could not be checked again"))

    async def _identity(self, presented: Credentials, permission: Permission, peer: Peer) -> Identity:
        authenticator = self._authenticator
        if authenticator is None:
            return UNCHECKED
        identity = authenticator.known(presented)
        if identity is None:
            try:
                self._verifications.take(peer(), VERIFICATIONS_PER_SECOND, VERIFICATION_BURST)
                identity = await authenticator.verify(presented)
            except Refused as error:
                self._tell(error.why, peer())
                raise Unauthenticated(str(error)) from None
        if identity.role < permission.least:
            if identity.method == "none":
                raise Unauthenticated
            current_identity.set(identity)  # for the log: a refused call ends here
            raise PermissionDenied(f"this needs the role {permission.least.word}, not {identity.role.word}")
        return identity

    def _read(self, file: Path) -> Authenticator:
        return Authenticator(read_policy(file), self._general)

    def _tell(self, why: str, peer: str) -> None:
        """Logs that a credential was refused, and never what it was; a flood of them makes a line a second."""
        now = time.monotonic()
        last, untold = self._told.get(why, (float("-inf"), 0))
        if now - last < _BETWEEN_LINES:
            self._told[why] = last, untold + 1
            return
        self._told[why] = now, 0
        log.warning("credential refused", why=why, peer=peer, untold=untold)


_PUBLIC: Final = Identity(ANONYMOUS, Role.NONE)


def _caller(identity: Identity, peer: Peer) -> tuple[str, str]:
    """Whose limits count: those without a credential are told apart by their address."""
    return (identity.method, peer() if identity.method == "none" else identity.name)
