"""``Identity``: the services that a caller may own and the groups that it may join."""

import pytest

from registry_server.security.identity import Identity, Role


@pytest.mark.parametrize("role", Role)
def test_patterns_restrict_agents_only(role: Role) -> None:
    identity = Identity("someone", role, "api-key", ("fleet-*",))
    assert identity.may_own("fleet-1") is (role >= Role.AGENT)
    assert identity.may_own("other") is (role > Role.AGENT)


@pytest.mark.parametrize(
    ("pattern", "group", "expected"),
    [
        ("pay-*", "pay", True),
        ("pay/*", "pay", True),
        ("pay-*", "pay-eu", True),
        ("pay-*-eu-*", "pay-a-eu", True),
        ("pay", "pay", True),
        ("pay*", "pay", True),
        ("evil-*", "pay", False),
        ("pay-*", "payments", False),
        ("pay.*", "pay", False),
        ("pay-eu-*", "pay", False),
        ("-*", "pay", False),
    ],
)
def test_group_is_authorised_like_a_name(pattern: str, group: str, *, expected: bool) -> None:
    assert Identity("someone", Role.AGENT, "api-key", (pattern,)).may_join(group) is expected
    assert Identity("someone", Role.VIEWER, "api-key", (pattern,)).may_join(group) is False
    assert Identity("someone", Role.OPERATOR).may_join(group) is True
