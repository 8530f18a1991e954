"""Authenticators and credentials for the tests of authentication."""

from registry_server.security.authenticator import Authenticator, Credentials
from registry_server.security.identity import Limits
from registry_server.security.policy import read_policy
from tests.support.manual_clock import ManualClock
from tests.support.security import Policy

DEFAULT_LIMITS = Limits(requests_per_second=1000, burst=1000, watches=10, services=10)


def authenticator_of(policy: Policy, clock: ManualClock | None = None) -> Authenticator:
    """Write the policy and return an authenticator for it, whose clock is stopped."""
    policy.write()
    return Authenticator(read_policy(policy.file), DEFAULT_LIMITS, monotonic=clock or ManualClock())


def bearer_credentials(credential: str) -> Credentials:
    """Return the credentials of a caller that sends a bearer credential."""
    return Credentials(authorization=f"Bearer {credential}")
