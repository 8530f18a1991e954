"""The type of a network, and the networks that probes never connect to by default.

The probe worker imports this module, so it must not import pydantic.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

Network = IPv4Network | IPv6Network

# Loopback and private networks are not among them, because agents usually run there.
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
