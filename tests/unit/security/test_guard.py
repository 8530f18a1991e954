"""``Guard``: unknown credentials."""

from dataclasses import dataclass

from structlog.testing import capture_logs

from registry_server.config import LimitSettings, SecuritySettings
from registry_server.errors import RegistryError, Unauthenticated
from registry_server.security.authenticator import Credentials
from registry_server.security.guard import Guard
from registry_server.security.permissions import READ
from tests.support.security import Policy, token
from tests.unit.security.credentials import bearer_credentials
from tests.unit.security.manual_clock import ManualClock


@dataclass
class Call:
    presented: Credentials
    origin: str
    caller_key: tuple[str, str] = ("", "")

    def credentials(self) -> Credentials:
        return self.presented

    def address(self) -> str:
        return self.origin


async def outcome(guard: Guard, credentials: Credentials, address: str = "192.0.2.1") -> type[RegistryError] | None:
    """Return the type of the error that rejects a call, or ``None``."""
    try:
        await guard.admit(Call(credentials, address), READ)
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
