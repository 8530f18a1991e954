"""``EgressPolicy``: the addresses that probes may connect to.

A registration chooses where the registry connects. Without a policy, it could make the registry read data that only its
host can reach, such as the credentials that clouds serve at link-local addresses (SSRF).
"""

import socket
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, NamedTuple

from registry_server.model.networks import DENIED_NETWORKS, Network
from registry_server.security.lookups import NameLookups

Address = IPv4Address | IPv6Address

# Ranges whose addresses end with an IPv4 address: NAT64, compatible (RFC 4291, 2.5.5.1), translated (RFC 2765, 2.1).
_ENDS_WITH_IPV4: Final = tuple(map(IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")))
_LAST_32_BITS: Final = 0xFFFF_FFFF
_LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
# Further addresses of a name are ignored: its owner must not make the registry open hundreds of connections.
_MAX_ADDRESSES: Final = 8
# Further addresses are not even checked: an answer of DNS may contain 4,000, which would take 0.1 s.
_MAX_CHECKED_ADDRESSES: Final = 64
_MAX_CACHED_ADDRESSES: Final = 10_000

_UNKNOWN_NAME: Final = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY})


class EndpointRefused(Exception):
    """The policy denies every address of the endpoint. The message becomes part of the service's health."""


class ResolutionFailed(Exception):
    """The host name has no address, or DNS failed. The message becomes part of the service's health."""


class ResolvedAddress(NamedTuple):
    """An address to connect to."""

    family: int
    """``AF_INET`` or ``AF_INET6``."""
    address: str
    port: int


class Resolution(NamedTuple):
    """The addresses of a host."""

    addresses: list[ResolvedAddress]
    """Allowed addresses, in the order in which to try them."""
    waited: float = 0.0
    """Seconds that the look-up waited for a free thread."""


class EgressPolicy:
    """Allowed and denied networks.

    ``DENIED_NETWORKS`` are denied too, except for allowed networks that lie within one of them. An IPv6 address that
    embeds an IPv4 address (mapped, 6to4, NAT64, Teredo) is denied if either address is, and an unspecified address if
    loopback is.
    """

    def __init__(self, allowed: Sequence[Network] = (), denied: Sequence[Network] = ()) -> None:
        """Set the networks.

        Args:
            allowed: Networks to allow; empty = all that are not denied.
            denied: Networks to deny; takes precedence over ``allowed``.
        """
        self._allowed = tuple(allowed)
        self._denied = tuple(denied)
        self._exceptions = tuple(
            each for each in allowed if any(_contains(default, each) for default in DENIED_NETWORKS)
        )
        self._permits_cached = lru_cache(_MAX_CACHED_ADDRESSES)(self._permits)  # saves 5 % of the cost of a probe
        self._lookups = NameLookups()

    def close(self) -> None:
        """Stop resolving names; lookups in flight are abandoned."""
        self._lookups.close()

    def denial_reason(self, address: str) -> str | None:
        """Return the reason why probes may not connect to an IP address; ``None`` if they may."""
        parsed = _parsed(address)
        permitted = parsed is not None and self._permits_cached(parsed)
        return None if permitted else f"address {address} is not allowed"

    def literal_denial_reason(self, host: str) -> str | None:
        """Return the reason why probes may not connect to a host; ``None`` if they may, or if it is a DNS name."""
        # A host with a colon is not a DNS name; every other IP address ends with a digit. This test avoids parsing most
        # DNS names as addresses, which costs as much as all other checks of an endpoint.
        is_address = ":" in host or (host[-1:].isdigit() and _parsed(host) is not None)
        return self.denial_reason(host) if is_address else None

    async def resolve(self, host: str, port: int, owner: str = "", max_seconds: float | None = None) -> Resolution:
        """Return the allowed addresses of a host.

        Connect to these addresses without resolving the name again, which could return others (DNS rebinding).

        Args:
            host: IP address or DNS name.
            port: Port of the returned addresses.
            owner: Owner of the service, whose look-ups share one part of the threads.
            max_seconds: Time limit of the look-up, and of waiting for it to start; ``None`` = none.

        Raises:
            EndpointRefused: Every address is denied.
            ResolutionFailed: The name has no address, or DNS failed.
            LookupNotStarted: Too many look-ups of this owner are in flight.
            TimeoutError: DNS did not answer in time.
        """
        literal = _parsed(host)
        if literal is not None:
            reason = self.denial_reason(host)
            if reason is not None:
                raise EndpointRefused(reason)
            family = socket.AF_INET if isinstance(literal, IPv4Address) else socket.AF_INET6
            return Resolution([ResolvedAddress(family, host, port)])
        resolved, waited = await self._look_up(host, port, owner, max_seconds)
        permitted = [address for address in resolved if self.denial_reason(address.address) is None]
        if not permitted:
            # The message omits the address, which could reveal internal DNS entries.
            raise EndpointRefused("host name has no allowed address")
        return Resolution(permitted[:_MAX_ADDRESSES], waited)

    async def _look_up(self, host: str, port: int, owner: str, max_seconds: float | None) -> Resolution:
        infos: list[Any] = []
        waited = 0.0
        try:
            infos, waited = await self._lookups.look_up(host, port, owner, max_seconds)
        except UnicodeError:  # an empty or too long label
            pass
        except TimeoutError:
            raise
        except OSError as error:
            if not isinstance(error, socket.gaierror) or error.errno not in _UNKNOWN_NAME:
                raise ResolutionFailed("host name could not be resolved") from error
        if not infos:
            raise ResolutionFailed("host name not found")
        addresses = (
            ResolvedAddress(family, str(socket_address[0]), port)
            for family, _, _, _, socket_address in infos[:_MAX_CHECKED_ADDRESSES]
        )
        return Resolution(list(dict.fromkeys(addresses)), waited)

    def _permits(self, address: Address) -> bool:
        embedded = _embedded_ipv4(address)
        reached = (address, *embedded, *_reached_loopback(address, *embedded))
        if any(self._is_denied(each) for each in reached):
            return False
        if not self._allowed or _is_in_any(address, self._allowed):
            return True
        return bool(embedded) and all(_is_in_any(each, self._allowed) for each in embedded)

    def _is_denied(self, address: Address) -> bool:
        return _is_in_any(address, self._denied) or (
            _is_in_any(address, DENIED_NETWORKS) and not _is_in_any(address, self._exceptions)
        )


@lru_cache(_MAX_CACHED_ADDRESSES)
def _parsed(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_in_any(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _contains(outer: Network, inner: Network) -> bool:
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]  # same version


def _reached_loopback(*addresses: Address) -> tuple[Address, ...]:
    """Return the loopback addresses if one of the addresses is unspecified: Linux then connects to itself."""
    return _LOOPBACK if any(address.is_unspecified for address in addresses) else ()


def _embedded_ipv4(address: Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address embeds."""
    if isinstance(address, IPv4Address) or address in _LOOPBACK:  # since Python 3.13 is_loopback looks at the IPv4 part
        return ()
    for embedded in (address.ipv4_mapped, address.sixtofour):
        if embedded is not None:
            return (embedded,)
    if address.teredo is not None:
        return address.teredo
    if _is_in_any(address, _ENDS_WITH_IPV4):
        return (IPv4Address(int(address) & _LAST_32_BITS),)
    return ()
