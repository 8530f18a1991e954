"""``EgressPolicy``: which addresses probes may connect to.

Whoever may register a service chooses where the registry connects. Without a policy a registration could make it read
what only its own host may read, such as the credentials that clouds serve at link-local addresses.
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

_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
# What else ends in an IPv4 address: compatible (RFC 4291, 2.5.5.1) and translated (RFC 2765, 2.1).
_IPV4_ENDINGS: Final = (IPv6Network("::/96"), IPv6Network("::ffff:0:0:0/96"))
_LAST_32_BITS: Final = 0xFFFF_FFFF
# A name with more addresses is not tried at all of them: its owner must not make us open connections by the hundred.
_MAX_ADDRESSES: Final = 8
_REMEMBERED: Final = 10_000
_LOOKUPS: Final = 64
"""Names that are looked up at once."""

_UNKNOWN_NAME: Final = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY})


class EndpointRefused(Exception):
    """The policy forbids every address of the endpoint; the message says so in plain words."""


class ResolutionFailed(Exception):
    """The host name has no address or DNS gave none; the message says so in plain words."""


class ResolvedAddress(NamedTuple):
    """Where to connect."""

    family: int
    """``AF_INET`` or ``AF_INET6``."""
    address: str
    port: int


class EgressPolicy:
    """Says which addresses may be connected to.

    An IPv6 address that stands for an IPv4 address (mapped, 6to4, NAT64, Teredo) is refused if either is.
    """

    def __init__(self, allowed: Sequence[Network] = (), denied: Sequence[Network] = DENIED_NETWORKS) -> None:
        """Sets the networks.

        Args:
            allowed: What may be connected to; empty = everything that is not denied.
            denied: What may not, whatever is allowed.
        """
        self._allowed = tuple(allowed)
        self._denied = tuple(denied)
        self._permitted = lru_cache(_REMEMBERED)(self._permits)  # else a twentieth of what a probe costs
        # Of our own: the loop's few threads would all wait for the first names whose servers do not answer.
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="probe-lookup")

    def close(self) -> None:
        """Lets lookups under way end by themselves; from here on no name is resolved."""
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def refuses(self, address: str) -> str | None:
        """Why this IP address may not be connected to, in plain words; None if it may."""
        parsed = _parsed(address)
        permitted = parsed is not None and self._permitted(parsed)
        return None if permitted else f"address {address} is not allowed"

    def refuses_literal(self, host: str) -> str | None:
        """The same for the host of an endpoint that is an IP address; None for a DNS name."""
        # No DNS name has a colon: what has one is an address or nothing at all. Any other address ends with a digit;
        # most names do not, and to find that out by parsing takes as long as all other checks of an endpoint.
        is_address = ":" in host or (host[-1:].isdigit() and _parsed(host) is not None)
        return self.refuses(host) if is_address else None

    async def resolve(self, host: str, port: int) -> list[ResolvedAddress]:
        """Addresses of a host that may be connected to, in the order in which to try them.

        The answer is to be connected to as it is: a name that is looked up again may give another address (DNS
        rebinding).

        Args:
            host: IP address or DNS name.
            port: Goes into the answer.

        Raises:
            EndpointRefused: Every address is refused.
            ResolutionFailed: The name has no address or DNS does not answer.
        """
        literal = _parsed(host)
        if literal is not None:
            refusal = self.refuses(host)
            if refusal is not None:
                raise EndpointRefused(refusal)
            return [ResolvedAddress(_family(literal), host, port)]
        found = await self._look_up(host, port)
        permitted = [address for address in found if self.refuses(address.address) is None]
        if not permitted:
            # The address is not named: it may be what an outsider is after.
            raise EndpointRefused("host name has no address that is allowed")
        return permitted[:_MAX_ADDRESSES]

    async def _look_up(self, host: str, port: int) -> list[ResolvedAddress]:
        infos = []
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            infos = await asyncio.get_running_loop().run_in_executor(self._lookups, look_up)
        except UnicodeError:  # a label that is empty or too long
            pass
        except OSError as error:
            if not isinstance(error, socket.gaierror) or error.errno not in _UNKNOWN_NAME:
                raise ResolutionFailed("host name could not be resolved") from error
        if not infos:
            raise ResolutionFailed("host name not found")
        addresses = (ResolvedAddress(family, str(where[0]), port) for family, _, _, _, where in infos)
        return list(dict.fromkeys(addresses))

    def _permits(self, address: Address) -> bool:
        embedded = _embedded(address)
        if any(_within(one, self._denied) for one in (address, *embedded)):
            return False
        if not self._allowed or _within(address, self._allowed):
            return True
        return bool(embedded) and all(_within(one, self._allowed) for one in embedded)


@lru_cache(_REMEMBERED)
def _parsed(text: str) -> Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)


def _family(address: Address) -> int:
    return socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6


def _embedded(address: Address) -> tuple[IPv4Address, ...]:
    """IPv4 addresses that an IPv6 address leads to."""
    if isinstance(address, IPv4Address) or address.is_loopback:
        return ()
    for embedded in (address.ipv4_mapped, address.sixtofour):
        if embedded is not None:
            return (embedded,)
    if address.teredo is not None:
        return address.teredo
    if any(address in network for network in (*_NAT64, *_IPV4_ENDINGS)):
        return (IPv4Address(int(address) & _LAST_32_BITS),)
    return ()
