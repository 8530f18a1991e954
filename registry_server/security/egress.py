"""``EgressPolicy``: the addresses that probes may connect to.

A registration chooses where the registry connects. Without a policy, it could make the registry read data that only its
host can reach, such as the credentials that clouds serve at link-local addresses (SSRF).
"""

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

from registry_server.model.networks import DENIED_NETWORKS, Network

Address = IPv4Address | IPv6Address

# Ranges whose addresses end with an IPv4 address: NAT64, compatible (RFC 4291, 2.5.5.1), translated (RFC 2765, 2.1).
_ENDS_WITH_IPV4: Final = tuple(map(IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")))
_LAST_32_BITS: Final = 0xFFFF_FFFF
# Further addresses of a name are ignored: its owner must not make the registry open hundreds of connections.
_MAX_ADDRESSES: Final = 8
_MAX_CACHED_ADDRESSES: Final = 10_000
_MAX_CONCURRENT_LOOKUPS: Final = 64

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


class EgressPolicy:
    """Allowed and denied networks.

    An IPv6 address that embeds an IPv4 address (mapped, 6to4, NAT64, Teredo) is denied if either address is.
    """

    def __init__(self, allowed: Sequence[Network] = (), denied: Sequence[Network] = DENIED_NETWORKS) -> None:
        """Set the networks.

        Args:
            allowed: Networks to allow; empty = all that are not denied.
            denied: Networks to deny; takes precedence over ``allowed``.
        """
        self._allowed = tuple(allowed)
        self._denied = tuple(denied)
        self._permits_cached = lru_cache(_MAX_CACHED_ADDRESSES)(self._permits)  # saves 5 % of the cost of a probe
        # A separate pool: slow DNS servers would block the few threads of the loop's default executor.
        self._lookups = ThreadPoolExecutor(_MAX_CONCURRENT_LOOKUPS, thread_name_prefix="probe-lookup")

    def close(self) -> None:
        """Stop resolving names; lookups in flight are abandoned."""
        self._lookups.shutdown(wait=False, cancel_futures=True)

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

    async def resolve(self, host: str, port: int) -> list[ResolvedAddress]:
        """Return the allowed addresses of a host, in the order in which to try them.

        Connect to these addresses without resolving the name again, which could return others (DNS rebinding).

        Args:
            host: IP address or DNS name.
            port: Port of the returned addresses.

        Raises:
            EndpointRefused: Every address is denied.
            ResolutionFailed: The name has no address, or DNS failed.
        """
        literal = _parsed(host)
        if literal is not None:
            reason = self.denial_reason(host)
            if reason is not None:
                raise EndpointRefused(reason)
            family = socket.AF_INET if isinstance(literal, IPv4Address) else socket.AF_INET6
            return [ResolvedAddress(family, host, port)]
        resolved = await self._look_up(host, port)
        permitted = [address for address in resolved if self.denial_reason(address.address) is None]
        if not permitted:
            # The message omits the address, which could reveal internal DNS entries.
            raise EndpointRefused("host name has no allowed address")
        return permitted[:_MAX_ADDRESSES]

    async def _look_up(self, host: str, port: int) -> list[ResolvedAddress]:
        infos = []
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            infos = await asyncio.get_running_loop().run_in_executor(self._lookups, look_up)
        except UnicodeError:  # an empty or too long label
            pass
        except OSError as error:
            if not isinstance(error, socket.gaierror) or error.errno not in _UNKNOWN_NAME:
                raise ResolutionFailed("host name could not be resolved") from error
        if not infos:
            raise ResolutionFailed("host name not found")
        addresses = (ResolvedAddress(family, str(socket_address[0]), port) for family, _, _, _, socket_address in infos)
        return list(dict.fromkeys(addresses))

    def _permits(self, address: Address) -> bool:
        embedded = _embedded_ipv4(address)
        if any(_is_in_any(each, self._denied) for each in (address, *embedded)):
            return False
        if not self._allowed or _is_in_any(address, self._allowed):
            return True
        return bool(embedded) and all(_is_in_any(each, self._allowed) for each in embedded)


@lru_cache(_MAX_CACHED_ADDRESSES)
def _parsed(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_in_any(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _embedded_ipv4(address: Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses that an IPv6 address embeds."""
    if isinstance(address, IPv4Address) or address.is_loopback:
        return ()
    for embedded in (address.ipv4_mapped, address.sixtofour):
        if embedded is not None:
            return (embedded,)
    if address.teredo is not None:
        return address.teredo
    if _is_in_any(address, _ENDS_WITH_IPV4):
        return (IPv4Address(int(address) & _LAST_32_BITS),)
    return ()
