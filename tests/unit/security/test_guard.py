"""``Guard``: unknown credentials, charges and places."""

from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest
from structlog.testing import capture_logs

from registry_server.config import LimitSettings, SecuritySettings
from registry_server.errors import LimitExceeded, PermissionDenied, RateLimited, RegistryError, Unauthenticated
from registry_server.security.authenticator import Credentials
from registry_server.security.guard import Guard
from registry_server.security.identity import UNCHECKED, Limits
from registry_server.security.limits import CallSlot
from registry_server.security.permissions import HEALTH, OPERATE, READ, Permission
from tests.support.manual_clock import ManualClock
from tests.support.security import Policy, token
from tests.unit.security.credentials import bearer_credentials


@dataclass
class Call:
    presented: Credentials
    origin: str
    caller_key: tuple[str, str] = ("", "")

    def credentials(self) -> Credentials:
        return self.presented

    def address(self) -> str:
        return self.origin


async def outcome(
    guard: Guard, credentials: Credentials, address: str = "192.0.2.1", permission: Permission = READ
) -> type[RegistryError] | None:
    """Return the type of the error that rejects a call, or ``None``."""
    try:
        await guard.admit(Call(credentials, address), permission)
    except RegistryError as error:
        return Unauthenticated if isinstance(error, Unauthenticated) else type(error)
    return None


async def test_unknown_keys_of_an_address_do_not_lock_out_good_ones(policy: Policy, clock: ManualClock) -> None:
    guard = Guard(SecuritySettings(policy_file=policy.file), LimitSettings(), monotonic=clock)
    for i in range(3_000):
        assert await outcome(guard, bearer_credentials(f"ossa_guess{i}")) is Unauthenticated
    for role in ("viewer", "operator"):
        assert await outcome(guard, bearer_credentials(policy.keys[role])) is None
    assert await outcome(guard, bearer_credentials(token(roles=["admin"]))) is None


async def test_refused_credentials_are_logged_once_a_second_for_each_reason(policy: Policy, clock: ManualClock) -> None:
    guard = Guard(SecuritySettings(policy_file=policy.file), LimitSettings(), monotonic=clock)
    with capture_logs() as logs:
        for _ in range(3):
            await outcome(guard, bearer_credentials("ossa_guess"))
        await outcome(guard, bearer_credentials("a.b.c"))
        clock.now += 1
        await outcome(guard, bearer_credentials("ossa_guess"))
    assert [(line["reason"], line["suppressed"]) for line in logs] == [
        ("unknown key", 0),
        ("malformed token", 0),
        ("unknown key", 2),
    ]


LOW_RATE = LimitSettings(requests_per_second=1, request_burst=5)


async def test_refused_calls_are_charged_to_their_caller(policy: Policy, clock: ManualClock) -> None:
    guard = Guard(SecuritySettings(policy_file=policy.file), LOW_RATE, monotonic=clock)
    viewer, admin = bearer_credentials(policy.keys["viewer"]), bearer_credentials(policy.keys["admin"])
    forbidden = [await outcome(guard, viewer, permission=OPERATE) for _ in range(7)]
    assert forbidden == [PermissionDenied] * 5 + [RateLimited] * 2
    assert await outcome(guard, viewer) is RateLimited
    missing = [await outcome(guard, Credentials()) for _ in range(7)]
    assert missing == [Unauthenticated] * 5 + [RateLimited] * 2
    assert await outcome(guard, bearer_credentials("ossa_guess")) is RateLimited, "from the same address"
    assert await outcome(guard, Credentials(), "192.0.2.2") is Unauthenticated
    assert await outcome(guard, admin) is None, "a credential is not charged for what its address does"


async def test_addresses_of_one_ipv6_network_share_a_rate(policy: Policy, clock: ManualClock) -> None:
    guard = Guard(SecuritySettings(policy_file=policy.file), LOW_RATE, monotonic=clock)
    same = [await outcome(guard, Credentials(), f"2001:db8::{number:x}") for number in range(6)]
    assert same == [Unauthenticated] * 5 + [RateLimited]
    assert await outcome(guard, Credentials(), "2001:db8:0:1::1") is Unauthenticated
    mapped = [await outcome(guard, Credentials(), "::ffff:192.0.2.9") for _ in range(6)]
    assert mapped == [Unauthenticated] * 5 + [RateLimited]
    assert await outcome(guard, Credentials(), "192.0.2.9") is RateLimited


def admit_repeatedly(guard: Guard, call: Call, times: int) -> None:
    for _ in range(times):
        assert guard.admit_known(call, READ) is UNCHECKED


def test_default_rate_of_an_address_applies_only_under_load(clock: ManualClock) -> None:
    guard = Guard(SecuritySettings(), LimitSettings(calls=10), monotonic=clock)
    call = Call(Credentials(), "192.0.2.1")
    admit_repeatedly(guard, call, 30_000)
    slots = [CallSlot(guard.in_flight, ("none", f"192.0.2.{number}")) for number in range(8)]
    with pytest.raises(RateLimited, match=r"limit of 10000 calls a second reached \(limits\.requests_per_second\)"):
        admit_repeatedly(guard, call, 20_001)
    for slot in slots:
        slot.release()
    assert guard.admit_known(call, READ) is UNCHECKED


def test_rate_that_was_set_always_applies(clock: ManualClock) -> None:
    guard = Guard(SecuritySettings(), LOW_RATE, monotonic=clock)
    call = Call(Credentials(), "192.0.2.1")
    with pytest.raises(RateLimited):
        admit_repeatedly(guard, call, 6)
    assert guard.admit_known(call, HEALTH) is UNCHECKED


async def test_fleet_behind_one_address_may_open_most_streams_without_a_policy() -> None:
    guard = Guard(SecuritySettings(), LimitSettings(watches=10_000))
    fleet, other = Call(Credentials(), "192.0.2.1"), Call(Credentials(), "192.0.2.2")
    with ExitStack() as streams:

        def open_stream(call: Call) -> None:
            assert guard.admit_known(call, READ) is UNCHECKED
            streams.enter_context(guard.session(call, UNCHECKED, READ, "keep-alive-streams"))

        for _ in range(8_000):
            open_stream(fleet)
        open_stream(other)
        with pytest.raises(LimitExceeded, match=r"limit of 10000 keep-alive-streams .* \(limits\.watches\)"):
            open_stream(fleet)
        open_stream(other)


async def test_refused_watch_names_the_policy_which_may_set_the_limit(policy: Policy) -> None:
    guard = Guard(SecuritySettings(policy_file=policy.file), LimitSettings())
    call = Call(bearer_credentials(policy.keys["agent"]), "192.0.2.1")
    identity = replace(await guard.admit(call, READ), limits=Limits(1, 1, watches=0, services=1))
    setting = r"\(limits\.watches_per_caller, or limits in the policy\)"
    with (
        pytest.raises(LimitExceeded, match=rf"^limit of 0 watches per caller reached {setting}"),
        guard.session(call, identity, READ, "watches"),
    ):
        pass


async def test_limits_in_force_are_logged(policy: Policy) -> None:
    with capture_logs() as logs:
        for security in (SecuritySettings(), SecuritySettings(policy_file=policy.file)):
            for limits in (LimitSettings(), LOW_RATE):
                Guard(security, limits).log_limits(limits)
    without_effect = {"unauthenticated_calls", "services_per_owner", "change_bytes_per_second"}
    for line in logs:
        assert without_effect & line.keys() == (set() if line["callers"] == "addresses" else without_effect)
    shown = [(line["callers"], line["requests_per_second"], line["only_above_80_percent"]) for line in logs]
    assert shown == [
        ("addresses", 10_000, ["requests_per_second", "request_burst", "watches_per_caller"]),
        ("addresses", 1, ["watches_per_caller"]),
        ("identities", 10_000, []),
        ("identities", 1, []),
    ]
