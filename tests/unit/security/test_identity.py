"""``Identity``: the services that a caller may own."""

import pytest

from registry_server.security.identity import Identity, Role


@pytest.mark.parametrize("role", Role)
def test_patterns_restrict_agents_only(role: Role) -> None:
    identity = Identity("someone", role, "api-key", ("fleet-*",))
    assert identity.may_own("fleet-1") is (role >= Role.AGENT)
    assert identity.may_own("other") is (role > Role.AGENT)
