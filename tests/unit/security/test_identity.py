"""``Identity``: the services that a caller may own and the groups that it may join; networks of addresses."""

import pytest

from registry_server.security.identity import Identity, Role, network_of


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


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:ffff::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("fe80::no", "fe80::no"),
    ],
)
def test_ipv6_network_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network
