"""``Guard``: authenticates, authorises and rate-limits every call."""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Protocol, TypeAlias, get_args

import structlog

from registry_server.config import LimitSettings, SecuritySettings
from registry_server.errors import (
    ConfigurationError,
    PermissionDenied,
    RegistryError,
    Unauthenticated,
)
from registry_server.runtime.tasks import cancel
from registry_server.security.authenticator import Authenticator, Credentials
from registry_server.security.identity import ANONYMOUS, UNCHECKED, Identity, Limits, Role, current_identity
from registry_server.security.jwt_tokens import CredentialRefused
from registry_server.security.limits import Buckets, Gauge, InFlight
from registry_server.security.permissions import HEALTH, Permission
from registry_server.security.policy import read_policy

_LOG_INTERVAL_SECONDS: Final = 1.0
"""Shortest time between two log lines with the same reason."""

log = structlog.get_logger(__name__)

Streams: TypeAlias = Literal["watches", "keep-alive-streams"]
"""Kind of stream; the limit on open streams applies to each kind separately."""


class Caller(Protocol):
    """A call, as far as admission needs to know."""

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
    """An open stream with its current identity; the guard ends it when that identity is no longer authorised."""

    def __init__(self, caller: Caller, permission: Permission) -> None:
        self.identity = UNCHECKED
        self.caller, self.permission = caller, permission
        self.ended: asyncio.Future[RegistryError] = asyncio.get_running_loop().create_future()
        """Its result is the reason why the stream must end."""
        self._timer: asyncio.TimerHandle | None = None

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


class Guard:
    """Admits calls according to the policy, which can be reloaded."""

    def __init__(
        self, security: SecuritySettings, limits: LimitSettings, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the policy.

        Args:
            security: Policy file and public parts.
            limits: Limits of callers for which the policy sets none, and of all callers together.
            monotonic: Clock for rates and for the age of the issuers' keys, in seconds.

        Raises:
            ConfigurationError: The policy is not valid.
        """
        self._file = security.policy_file
        self._public = frozenset(security.public)
        self.stream_idle_seconds = float(limits.stream_idle_seconds)
        """Longest time that a stream may stay open without a message from its client."""
        self._default_limits = Limits(
            limits.requests_per_second, limits.request_burst, limits.watches_per_caller, limits.services_per_owner
        )
        self._monotonic = monotonic
        self._buckets = Buckets(monotonic)
        self.in_flight = InFlight(limits.calls, limits.call_bytes)
        """Calls in flight, of all callers together."""
        self._streams: dict[Streams, Gauge] = {kind: Gauge(kind, limits.watches) for kind in get_args(Streams)}
        self._sessions: set[Session] = set()
        self._log_times: dict[str, tuple[float, int]] = {}
        self._rechecking: asyncio.Task[None] | None = None
        self._authenticator: Authenticator | None = None
        if self._file:
            self._authenticator = self._read_policy(self._file)

    async def admit(self, caller: Caller, permission: Permission) -> Identity:
        """Admit a call that ``admit_known`` did not admit, and return the caller's identity.

        Raises:
            Unauthenticated: The credential is not valid, or one is required.
            PermissionDenied: The role does not include the permission.
            RateLimited: The caller exceeded its rate.
            IssuerUnavailable: The keys of the token's issuer are not available.
            Overloaded: Too many tokens wait for verification.
        """
        identity = await self._identity(caller, permission, caller.address())
        self.charge(identity, caller)
        return identity

    def admit_known(self, caller: Caller, permission: Permission) -> Identity | None:
        """Admit a call whose credentials are cached, as for almost every call; costs microseconds.

        Returns:
            The caller's identity; ``None`` = use ``admit``.

        Raises:
            RateLimited: The caller exceeded its rate.
        """
        authenticator = self._authenticator
        if authenticator is None:
            if permission is not HEALTH:
                self.charge(UNCHECKED, caller)
            return UNCHECKED
        credentials = caller.credentials()
        if permission.part in self._public:
            return _PUBLIC
        identity = authenticator.cached_identity(credentials)
        if identity is None or identity.role < permission.min_role:
            return None
        self.charge(identity, caller)
        return identity

    def charge(self, identity: Identity, caller: Caller) -> None:
        """Charge a call to its caller.

        Raises:
            RateLimited: The caller exceeded its rate.
        """
        limits = identity.limits or self._default_limits
        self._buckets.take_token(_key(identity, caller), limits.requests_per_second, limits.burst)

    @contextmanager
    def session(
        self, caller: Caller, identity: Identity, permission: Permission, streams: Streams
    ) -> Iterator[Session]:
        """Track an open stream, and end it when its credential expires or a new policy no longer admits its caller.

        Args:
            caller: The call, which was admitted.
            identity: Its identity.
            permission: Permission that it needs.
            streams: Kind of the stream.

        Raises:
            LimitExceeded: The caller, or the server, has too many open streams of this kind.
        """
        session = Session(caller, permission)
        limits = identity.limits or self._default_limits
        with self._streams[streams].count(_key(identity, caller), limits.watches):
            self._sessions.add(session)
            session.set_identity(identity)
            try:
                yield session
            finally:
                self._sessions.discard(session)
                session.cancel_expiry()

    def reload(self) -> None:
        """Reload the policy; on failure, log the problems and keep the current policy.

        Open streams continue if the new policy admits their caller, and end immediately if not.
        """
        if self._file is None:
            return
        try:
            self._authenticator = self._read_policy(self._file)
        except ConfigurationError as error:
            problems = str(error).splitlines()
            log.error("policy reload failed", problems=problems)  # noqa: TRY400 - the problems are complete
            return
        log.info("policy reloaded", file=str(self._file))
        self._start_recheck()

    async def close(self) -> None:
        """Cancel background work."""
        if self._authenticator is not None:
            await self._authenticator.close()
        if self._rechecking is not None:
            await cancel([self._rechecking])

    def _start_recheck(self) -> None:
        self._rechecking = asyncio.create_task(self._recheck_sessions(self._rechecking), name="policy-check")

    async def _recheck_sessions(self, previous: asyncio.Task[None] | None) -> None:
        if previous is not None:
            await cancel([previous])
        for session in list(self._sessions):
            try:
                identity = await self._identity(session.caller, session.permission)
                await asyncio.sleep(0)  # verifying a token takes up to a millisecond
                if session in self._sessions:  # it may have been closed in the meantime
                    session.set_identity(identity)
            except RegistryError as error:
                session.end(error)
            except Exception:
                log.exception("stream authorisation recheck failed")
                session.end(Unauthenticated("the credential could not be verified against the new policy"))

    async def _identity(self, caller: Caller, permission: Permission, address: str | None = None) -> Identity:
        """Return the identity of a caller that has the permission.

        Args:
            caller: The call.
            permission: Permission that it needs.
            address: Its address; ``None`` = an internal check, which takes no turn of a caller.
        """
        if self._authenticator is None:
            return UNCHECKED
        credentials = caller.credentials()
        while True:
            authenticator = self._authenticator
            identity = authenticator.cached_identity(credentials)
            if identity is None:
                try:
                    identity = await authenticator.verify(credentials, address)
                except CredentialRefused as error:
                    self._log_refusal(error.log_reason, caller.address())
                    raise Unauthenticated(str(error)) from None
            if authenticator is self._authenticator:
                break
            # The policy was reloaded while the token was verified.
        if identity.role < permission.min_role:
            if identity.method == "none":
                raise Unauthenticated
            current_identity.set(identity)  # for the request log
            raise PermissionDenied(f"requires the role {permission.min_role.word}; the caller has {identity.role.word}")
        return identity

    def _read_policy(self, file: Path) -> Authenticator:
        return Authenticator(
            read_policy(file),
            self._default_limits,
            previous=self._authenticator,
            on_withdrawal=self._start_recheck,
            monotonic=self._monotonic,
        )

    def _log_refusal(self, reason: str, peer: str) -> None:
        """Log a refused credential without its value, at most once a second for each reason."""
        now = self._monotonic()
        last, suppressed = self._log_times.get(reason, (float("-inf"), 0))
        if now - last < _LOG_INTERVAL_SECONDS:
            self._log_times[reason] = last, suppressed + 1
            return
        self._log_times[reason] = now, 0
        log.warning("credential refused", reason=reason, peer=peer, suppressed=suppressed)


_PUBLIC: Final = Identity(ANONYMOUS, Role.NONE)
"""Caller of a public endpoint, whose credentials are not verified."""


def _key(identity: Identity, caller: Caller) -> tuple[str, str]:
    """Return the key for a caller's limits; callers without a credential are distinguished by address."""
    return (identity.method, caller.address() if identity.method == "none" else identity.name)
