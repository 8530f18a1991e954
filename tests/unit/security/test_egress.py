"""``EgressPolicy``: the addresses that probes may connect to."""

import re
import socket
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_server.config import HealthCheckSettings
from registry_server.security.egress import EgressPolicy, EndpointRefused, ResolutionFailed, ResolvedAddress

AddressInfo = tuple[int, int, int, str, tuple[str | int, ...]]


def address_infos(addresses: Sequence[str], port: int) -> list[AddressInfo]:
    """Return a result of ``getaddrinfo``."""
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
        if ":" in address
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in addresses
    ]


class FakeDns:
    """Replaces the system's resolver: returns each answer once and then repeats the last one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str] | Exception) -> None:
        self._answers = list(answers)
        self.lookups: list[str] = []
        monkeypatch.setattr(socket, "getaddrinfo", self._answer)

    def _answer(self, host: str, port: int, **_: object) -> list[AddressInfo]:
        self.lookups.append(host)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return address_infos(answer, port)


DENIED = [
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "febf::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "224.0.0.1",
    "239.255.255.255",
    "ff02::1",
    "255.255.255.255",
    # IPv6 addresses that embed a denied IPv4 address.
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::ffff:0:169.254.169.254",
    "::169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2001:0:7f00:1:0:0:5601:5601",  # Teredo: the client's address, inverted
    "::ffff:0.0.0.0",
    "64:ff9b::224.0.0.1",
]
PERMITTED = [
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "::ffff:127.0.0.1",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "fd00::1",
    "64:ff9b::172.31.255.255",
    "2002:c0a8:101::1",
]
PUBLIC = [
    "8.8.8.8",
    "2001:4860:4860::8888",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]
# Text that some resolvers and browsers parse as an IPv4 address.
NO_ADDRESSES = ["", "127.1", "0x7f.0.0.1", "2852039166", "169.254.169.254.", "127.0.0.01", "::g", "[::1]"]


@pytest.mark.parametrize("address", DENIED)
def test_link_local_metadata_and_multicast_addresses_are_denied(address: str) -> None:
    policy = EgressPolicy()
    assert policy.denial_reason(address) == f"address {address} is not allowed"
    assert policy.literal_denial_reason(address) == f"address {address} is not allowed"


@pytest.mark.parametrize("address", [*PERMITTED, *PUBLIC])
def test_loopback_private_and_public_addresses_are_allowed(address: str) -> None:
    policy = EgressPolicy()
    assert policy.denial_reason(address) is None
    assert policy.literal_denial_reason(address) is None


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_text_that_is_no_address_is_denied(text: str) -> None:
    assert EgressPolicy().denial_reason(text) == f"address {text} is not allowed"


@pytest.mark.parametrize("name", ["localhost", "agent.internal", "127.1", "metadata.google.internal", "1.2.3.4.test"])
def test_dns_name_is_not_an_address_literal(name: str) -> None:
    assert EgressPolicy().literal_denial_reason(name) is None


def test_host_with_a_colon_is_never_a_dns_name() -> None:
    assert EgressPolicy().literal_denial_reason("::g") == "address ::g is not allowed"


@pytest.mark.parametrize(
    ("address", "permitted"),
    [
        ("10.1.2.3", True),
        ("10.9.9.9", False),  # denied takes precedence over allowed
        ("11.0.0.1", False),
        ("127.0.0.1", False),
        ("fd00::1", True),
        ("fd01::1", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.9.9.9", False),
        ("::ffff:11.0.0.1", False),
        ("64:ff9b::10.1.2.3", True),
        ("2001:0:a01:203::1", False),  # Teredo: the server is allowed, the client is not
        ("169.254.7.7", True),  # an exception: an allowed network within one that is denied by default
        ("::ffff:169.254.7.7", True),
        ("64:ff9b::169.254.7.7", True),
        ("169.254.169.254", False),
        ("fe80::1", False),  # the allowed network is larger than the one that is denied by default
    ],
)
def test_addresses_outside_the_allowed_networks_are_denied(address: str, permitted: bool) -> None:  # noqa: FBT001 - a table
    policy = EgressPolicy(
        allowed=[ip_network(each) for each in ("10.0.0.0/8", "fd00::/16", "169.254.7.0/24", "fe00::/7")],
        denied=[ip_network("10.9.0.0/16")],
    )
    assert (policy.denial_reason(address) is None) is permitted


UNSPECIFIED = ["0.0.0.0", "::", "::ffff:0.0.0.0", "::ffff:0:0.0.0.0", "64:ff9b::0.0.0.0", "64:ff9b:1::", "2002::1"]


@pytest.mark.parametrize("address", UNSPECIFIED)
def test_unspecified_address_counts_as_loopback(address: str) -> None:
    everything = [ip_network("0.0.0.0/8"), ip_network("::/128")]  # an exception from the networks denied by default
    reaching = EgressPolicy(allowed=[*everything, ip_network("0.0.0.0/0"), ip_network("::/0")])
    assert reaching.denial_reason(address) is None
    for loopback in ("127.0.0.0/8", "::1/128"):
        without = EgressPolicy(
            allowed=[*everything, ip_network("0.0.0.0/0"), ip_network("::/0")], denied=[ip_network(loopback)]
        )
        assert without.denial_reason(address) is not None


def documented_hardening() -> list[str]:
    """Return the value of the setting in the command that docs/health.md recommends."""
    text = (Path(__file__).parents[3] / "docs/health.md").read_text(encoding="utf-8")
    return re.findall(r"ossa-registry serve --health-check\.denied-networks=(\S+)", text)


@pytest.mark.parametrize("address", sorted({*DENIED, *UNSPECIFIED, *PERMITTED}))
def test_documented_hardening_denies_every_internal_address(address: str) -> None:
    (networks,) = documented_hardening()
    policy = EgressPolicy(denied=HealthCheckSettings(denied_networks=networks).denied_networks)  # type: ignore[arg-type]  # parsed
    assert policy.denial_reason(address) is not None
    assert [public for public in PUBLIC if policy.denial_reason(public) is not None] == []


@given(address=st.ip_addresses(v=4))
def test_ipv6_address_is_denied_if_its_embedded_ipv4_address_is(address: object) -> None:
    policy = EgressPolicy()
    denied = policy.denial_reason(str(address)) is not None
    number = int(ip_address(str(address)))
    for embedding in (number | 0xFFFF << 32, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80 | 1):
        text = str(ip_address(embedding.to_bytes(16, "big")))
        assert (policy.denial_reason(text) is not None) is denied, text


async def test_address_literal_is_resolved_without_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    dns = FakeDns(monkeypatch, OSError("must not be called"))
    policy = EgressPolicy()
    assert (await policy.resolve("127.0.0.1", 80)).addresses == [ResolvedAddress(socket.AF_INET, "127.0.0.1", 80)]
    assert (await policy.resolve("::1", 81)).addresses == [ResolvedAddress(socket.AF_INET6, "::1", 81)]
    with pytest.raises(EndpointRefused, match=r"^address 169\.254\.169\.254 is not allowed$"):
        await policy.resolve("169.254.169.254", 80)
    assert dns.lookups == []


async def test_name_resolves_to_its_allowed_addresses_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDns(monkeypatch, ["fe80::1", "::1", "127.0.0.1", "169.254.169.254", "127.0.0.1"])
    assert (await EgressPolicy().resolve("agent.test", 8080)).addresses == [
        ResolvedAddress(socket.AF_INET6, "::1", 8080),
        ResolvedAddress(socket.AF_INET, "127.0.0.1", 8080),
    ]


async def test_name_resolves_to_at_most_eight_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDns(monkeypatch, [f"127.0.1.{i}" for i in range(100)])
    assert len((await EgressPolicy().resolve("agent.test", 80)).addresses) == 8


async def test_few_addresses_of_a_large_answer_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check takes 30 µs, in the event loop that sends the probes of all owners."""
    FakeDns(monkeypatch, [f"127.1.{i // 256}.{i % 256}" for i in range(4_000)])
    policy = EgressPolicy()
    assert len((await policy.resolve("agent.test", 80)).addresses) == 8
    assert policy._permits_cached.cache_info().misses <= 64


async def test_denied_addresses_of_a_name_are_not_disclosed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeDns(monkeypatch, ["169.254.169.254", "::ffff:169.254.169.254"])
    with pytest.raises(EndpointRefused, match=r"^host name has no allowed address$"):
        await EgressPolicy().resolve("agent.test", 80)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "host name not found"),
        (socket.gaierror(socket.EAI_NODATA, "No address"), "host name not found"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "host name could not be resolved"),
        (socket.gaierror(socket.EAI_FAIL, "Failure"), "host name could not be resolved"),
        (OSError(24, "Too many open files"), "host name could not be resolved"),
        (UnicodeError("label empty or too long"), "host name not found"),
        ([], "host name not found"),
    ],
)
async def test_dns_failures_are_reported_in_plain_english(
    monkeypatch: pytest.MonkeyPatch, answer: Sequence[str] | Exception, text: str
) -> None:
    FakeDns(monkeypatch, answer)
    with pytest.raises(ResolutionFailed, match=f"^{text}$"):
        await EgressPolicy().resolve("agent.test", 80)


async def test_name_with_too_long_a_label_is_not_found() -> None:
    with pytest.raises(ResolutionFailed, match=r"^host name not found$"):
        await EgressPolicy().resolve("a" * 64 + ".test", 80)
