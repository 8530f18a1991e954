"""Networks in settings."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from registry_server.config.addresses import bad_setting, split_list

Network = IPv4Network | IPv6Network

# Loopback and private networks are not here: that is where agents live.
DENIED_NETWORKS: Final[tuple[Network, ...]] = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # "this host": Linux connects to itself
        "::/128",
        "169.254.0.0/16",  # link-local, and the metadata service of most clouds
        "fe80::/10",
        "fd00:ec2::254/128",  # metadata services elsewhere: AWS, Google, Alibaba, Oracle, Azure
        "fd20:ce::254/128",
        "100.100.100.200/32",
        "192.0.0.192/32",
        "168.63.129.16/32",
        "224.0.0.0/4",  # multicast
        "ff00::/8",
        "255.255.255.255/32",
    )
)


def parse_networks(value: object) -> object:
    """Reads networks from a text with commas or a list of texts."""
    parts = split_list(value)
    if not isinstance(parts, Sequence):
        raise bad_setting("must be networks such as 10.0.0.0/8, separated by commas, or 'none'")
    return tuple(_network(part) for part in parts)


def _network(part: object) -> Network:
    if isinstance(part, IPv4Network | IPv6Network):
        return part
    try:
        return ip_network(part if isinstance(part, str) else "")
    except ValueError:
        # Also where bits beside the prefix are set: whoever writes 10.1.0.0/8 meant one of two things.
        raise bad_setting("must be networks such as 10.0.0.0/8, separated by commas, or 'none'") from None
