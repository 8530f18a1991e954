"""Networks in settings."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network

from registry_server.config.addresses import bad_setting, split_list
from registry_server.model.networks import Network


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
