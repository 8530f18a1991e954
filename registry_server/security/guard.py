"""``Guard``: authenticates, authorises and rate-limits every call."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, get_args

import structlog

from registry_server.config import LimitSettings, SecuritySettings
from registry_server.errors import ConfigurationError, PermissionDenied, RateLimited, Unauthenticated
from registry_server.instrumentation.log_budget import LogBudget
from registry_server.runtime.tasks import cancel
from registry_server.runtime.token_buckets import TokenBuckets
from registry_server.security.authenticator import Authenticator, Credentials
from registry_server.security.identity import (
    ANONYMOUS,
    UNCHECKED,
    Identity,
    Limits,
    Role,
    caller_key,
    current_identity,
)
from registry_server.security.jwt_tokens import CredentialRefused
from registry_server.security.limits import Gauge, InFlight, Places, Streams
from registry_server.security.permissions import HEALTH, METRICS, Permission
from registry_server.security.policy import read_policy
from registry_server.security.sessions import Caller, Session, Sessions
from registry_server.security.visibility import Visibility

_GUEST_BYTES_DIVISOR: Final = 4
"""Callers without a credential may hold a quarter of ``limits.call_bytes``, in addition to it."""
_NEED_POLICY: Final = {"unauthenticated_calls", "services_per_owner", "change_bytes_per_second"}
"""Limits that have no effect without a policy: no caller is without a credential, and no service has an owner."""
_RATE: Final = ("requests_per_second", "request_burst")

log = structlog.get_logger(__name__)


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
        self._buckets = TokenBuckets(monotonic)
        self._places, self._guest_places = _caller_places(limits), _guest_places(limits)
        self.in_flight = self._places.in_flight
        """Calls in flight of all callers; with a policy, of those with a credential."""
        self.all_in_flight = (self.in_flight, self._guest_places.in_flight)
        """Calls in flight of callers, and of those without a credential if there is a policy."""
        self._spare_rate = not self._file and limits.is_default(*_RATE)
        """Whether callers may exceed their rate while the process has room."""
        self._spare_streams = limits.is_default("watches_per_caller")
        """Whether addresses may exceed their number of streams while the process has room."""
        self._sessions = Sessions()
        self._refusals_log = LogBudget(1, 1, monotonic)  # for each reason
        self._rechecking: asyncio.Task[None] | None = None
        self._authenticator: Authenticator | None = None
        if self._file:
            self._authenticator = self._read_policy(self._file)

    def log_limits(self, limits: LimitSettings) -> None:
        """Log the limits in force."""
        spare = [*(_RATE if self._spare_rate else ()), *(("watches_per_caller",) if self._spare_streams else ())]
        log.info(
            "limits in force",
            callers="identities" if self._file else "addresses",
            only_above_80_percent=[] if self._file else spare,
            **limits.model_dump(exclude=None if self._file else _NEED_POLICY),
        )

    @property
    def _guest(self) -> Identity:
        """Identity of a caller without a credential that was accepted."""
        return _BLIND_GUEST if self._authenticator is not None and self._authenticator.restricts else GUEST

    async def admit(self, caller: Caller, permission: Permission) -> Identity:
        """Admit a call that ``admit_known`` did not admit, and return the caller's identity.

        A rejected call is charged too.

        Raises:
            Unauthenticated: The credential is not valid, or one is required.
            PermissionDenied: The role does not include the permission.
            RateLimited: The caller exceeded its rate.
            IssuerUnavailable: The keys of the token's issuer are not available.
            Overloaded: Too many tokens wait for verification.
        """
        identity = self._guest
        try:
            identity = await self._identity(caller.credentials(), caller.address())
            _require_role(identity, permission)
        except (Unauthenticated, PermissionDenied) as error:
            if isinstance(error, CredentialRefused):
                self._log_refusal(error.log_reason, caller.address())
                error = Unauthenticated(str(error))
            if identity is not self._guest:
                current_identity.set(identity)  # for the request log
            caller.caller_key = caller_key(identity, caller.address)
            self.charge(identity, caller.caller_key)
            raise error from None
        caller.caller_key = caller_key(identity, caller.address)
        self.charge(identity, caller.caller_key)
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
            caller.caller_key = caller_key(UNCHECKED, caller.address)
            if permission is not HEALTH:
                self.charge(UNCHECKED, caller.caller_key)
            return UNCHECKED
        public = permission.part in self._public
        try:
            identity = authenticator.cached_identity(caller.credentials())
        except Unauthenticated:
            identity = None
        if identity is None or identity.role < permission.min_role or (permission is METRICS and identity.visibility):
            if not public:
                return None
            identity = self._guest  # public parts do not verify credentials
        caller.caller_key = caller_key(identity, caller.address)
        if permission is not HEALTH or not public:  # probes of a platform must work under overload
            self.charge(identity, caller.caller_key)
        return identity

    def charge(self, identity: Identity, key: tuple[str, str]) -> None:
        """Charge a call to its caller.

        Args:
            identity: The caller, with its limits.
            key: Key for them; see ``caller_key``.

        Raises:
            RateLimited: The caller exceeded its rate.
        """
        if self._spare_rate and not self.in_flight.calls.scarce:
            return
        limits = identity.limits or self._default_limits
        rate = limits.requests_per_second
        if retry_after := self._buckets.take(key, rate, limits.burst):
            is_default = rate == self._default_limits.requests_per_second
            setting = "limits.requests_per_second" if is_default else "limits in the policy"
            raise RateLimited(retry_after, f"limit of {rate:g} calls a second reached ({setting})")

    def charge_guest(self, caller: Caller) -> None:
        """Charge a call that is rejected before its credentials are looked at.

        Raises:
            RateLimited: Its address exceeded its rate.
        """
        caller.caller_key = caller_key(self._guest, caller.address)
        self.charge(self._guest, caller.caller_key)

    def places(self, key: tuple[str, str], permission: Permission | None = None) -> Places:
        """Return the places for a call; with a policy, those of callers without a credential have places of their own.

        The answers of health checks have these too, because the probes of a platform must work under overload.
        """
        return self._guest_places if permission is HEALTH or self.is_guest(key) else self._places

    def is_guest(self, key: tuple[str, str]) -> bool:
        """Return whether the key belongs to callers without a credential although there is a policy."""
        return key[0] == "none" and self._authenticator is not None

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
        limits = identity.limits or self._default_limits
        limit = None if self._spare_streams and identity.limits is None else limits.watches
        with (
            self.places(caller.caller_key).streams[streams].count(caller.caller_key, limit),
            self._sessions.open(caller, identity, permission) as session,
        ):
            yield session

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
        await self._sessions.recheck(self._reverify, _require_role, self._public)

    async def _reverify(self, credentials: Credentials) -> Identity:
        """Return the identity of the credentials of an open stream; no caller is charged for it.

        Raises:
            Unauthenticated: The credentials are not valid.
            IssuerUnavailable: The keys of the token's issuer are not available.
        """
        try:
            return await self._identity(credentials, None)
        except CredentialRefused as error:
            raise Unauthenticated(str(error)) from None

    async def _identity(self, credentials: Credentials, address: str | None) -> Identity:
        """Return the identity of credentials.

        Args:
            credentials: What a caller presented.
            address: Its address; ``None`` = an internal check, which takes no turn of a caller.

        Raises:
            CredentialRefused: They are not valid.
            IssuerUnavailable: The keys of the token's issuer are not available.
            Overloaded: Too many tokens wait for verification.
        """
        while (authenticator := self._authenticator) is not None:
            identity = authenticator.cached_identity(credentials)
            if identity is None:
                identity = await authenticator.verify(credentials, address)
            if authenticator is self._authenticator:  # otherwise the policy was reloaded in the meantime
                return identity
        return UNCHECKED

    def _read_policy(self, file: Path) -> Authenticator:
        authenticator = Authenticator(
            read_policy(file),
            self._default_limits,
            previous=self._authenticator,
            on_withdrawal=self._start_recheck,
            monotonic=self._monotonic,
        )
        authenticator.load_keys()
        return authenticator

    def _log_refusal(self, reason: str, peer: str) -> None:
        """Log a refused credential without its value, at most once a second for each reason."""
        suppressed = self._refusals_log.take_line(reason)
        if suppressed is not None:
            log.warning("credential refused", reason=reason, peer=peer, suppressed=suppressed)


GUEST: Final = Identity(ANONYMOUS, Role.NONE)
"""Caller without a credential that was accepted."""
_BLIND_GUEST: Final = Identity(ANONYMOUS, Role.NONE, visibility=Visibility(None, ((),)))
"""The same, if the policy restricts what callers see: the health of services that it does not see is not reported."""


def _require_role(identity: Identity, permission: Permission) -> None:
    """Check that a caller has a permission.

    Raises:
        Unauthenticated: A credential is required.
        PermissionDenied: Its role does not include it, or it sees only some services.
    """
    if identity.role < permission.min_role:
        if identity.method == "none":
            raise Unauthenticated
        raise PermissionDenied(f"requires the role {permission.min_role.word}; the caller has {identity.role.word}")
    if permission is METRICS and identity.visibility is not None:
        raise PermissionDenied("the metrics count all services; the caller sees only some")


def _caller_places(limits: LimitSettings) -> Places:
    per_caller = "limits.watches_per_caller, or limits in the policy"
    return Places(
        InFlight(limits.calls, limits.call_bytes),
        {
            kind: Gauge(kind, limits.watches, setting="limits.watches", setting_per_caller=per_caller)
            for kind in get_args(Streams)
        },
    )


def _guest_places(limits: LimitSettings) -> Places:
    setting, limit = "limits.unauthenticated_calls", limits.unauthenticated_calls
    return Places(
        InFlight(limit, limits.call_bytes // _GUEST_BYTES_DIVISOR, setting),
        {kind: Gauge(kind, limit, setting=setting) for kind in get_args(Streams)},
    )
