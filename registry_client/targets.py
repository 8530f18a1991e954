"""Addresses of registries, and the HTTP proxies between the client and them.

gRPC reads the proxy variables itself, but also for loopback, without ``NO_PROXY`` and ``*``, and its errors do not name
the proxy. The SDK therefore chooses the proxy of each target and passes the decision to gRPC.
"""

import ipaddress
import logging
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from ossa_common.violations import quoted

DEFAULT_PORT: Final = 50051
_MAX_PORT: Final = 65_535
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")
_HOST_PORT: Final = re.compile(r"(\[[^\[\]]+\]|[^:\[\]]+)(?::([^:]*))?")
_UNIX: Final = ("unix:", "unix-abstract:")
_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
"""In the order in which gRPC reads them, also without TLS. The upper-case names are not read: see httpoxy.org."""
_NO_PROXY_VARIABLES: Final = ("no_grpc_proxy", "no_proxy", "NO_PROXY")

log = logging.getLogger(__name__)


class Proxy(NamedTuple):
    """An HTTP proxy that supports CONNECT."""

    url: str
    """URL, which may contain a password."""
    source: str
    """The variable that names it; empty for an argument of the client."""

    def __str__(self) -> str:
        address = urlsplit(self.url).netloc.rpartition("@")[2]
        return f"http://{address}" + (f" (from the variable {self.source})" if self.source else "")


def parse_target(text: str) -> str:
    """Return a target in the form that gRPC expects: ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``.

    Without a port it is 50051. A prefix ``dns:///``, the default of gRPC, is removed.

    Raises:
        ValueError: The text is not an address.
    """
    if not text:
        raise ValueError("the target is empty; use HOST:PORT, such as localhost:50051")
    if text.startswith(_UNIX):
        if text.partition(":")[2].strip("/"):
            return text
        raise _bad_target(text, "the path is missing")
    address = text.removeprefix("dns:///")
    scheme, separator, rest = address.partition("://")
    if separator:
        suggestion = re.split(r"[/?#]", rest.rpartition("@")[2])[0]
        raise _bad_target(text, f"remove {scheme}://" + (f" and use {suggestion}" if suggestion else ""))
    if _is_ipv6(address):
        address = f"[{address}]"
    match = _HOST_PORT.fullmatch(address)
    if match is None:
        raise _bad_target(text, "it is not HOST:PORT")
    host, port = match.groups(default=str(DEFAULT_PORT))
    if not (_is_ipv6(host[1:-1]) if host.startswith("[") else _HOST.fullmatch(host)):
        raise _bad_target(text, f"{quoted(host)} is not a host name or address")
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= _MAX_PORT and len(port) <= len(str(_MAX_PORT))):
        raise _bad_target(text, f"the port must be from 1 to {_MAX_PORT}")
    return f"{host}:{port}"


def is_loopback(target: str) -> bool:
    """Return whether connections to a target stay on this machine."""
    if target.startswith(_UNIX):
        return True
    host = _host(target)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def proxy_from_environment(target: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy for a target by the variables of the environment, or None for a direct connection.

    The proxy is the first one of ``grpc_proxy``, ``https_proxy`` and ``http_proxy`` that is set; empty = none. Loopback
    and the hosts in ``no_grpc_proxy``, otherwise ``no_proxy``, otherwise ``NO_PROXY`` are connected to directly. Its
    entries are separated by commas: ``*`` for all hosts, the end of a host name, an address, or a range in CIDR
    notation; a host may have a port.
    """
    source = next((name for name in _PROXY_VARIABLES if name in environ), "")
    if not environ.get(source) or is_loopback(target):
        return None
    excluded = next((environ[name] for name in _NO_PROXY_VARIABLES if name in environ), "")
    if any(_is_excluded(target, entry.strip().lower()) for entry in excluded.split(",")):
        return None
    try:
        return parse_proxy(environ[source], source)
    except ValueError as error:
        log.warning("connecting without a proxy: variable %s: %s", source, error)
        return None


def parse_proxy(text: str, source: str = "") -> Proxy:
    """Return a proxy given as URL or as ``HOST:PORT``.

    Raises:
        ValueError: gRPC does not support the URL.
    """
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("a proxy must be http://[USER:PASSWORD@]HOST:PORT; gRPC supports no other schemes")
    return Proxy(url, source)


def _is_excluded(target: str, entry: str) -> bool:
    host = _host(target)
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        # Not two addresses. A suffix matches as in gRPC; `*.example.com` is the same as `.example.com`.
        suffix = entry.removeprefix("*")
        return bool(suffix) and (host.endswith(suffix) or target.lower().endswith(suffix))


def _host(target: str) -> str:
    return target.rpartition(":")[0].strip("[]").rstrip(".").lower()


def _is_ipv6(text: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _bad_target(text: str, problem: str) -> ValueError:
    return ValueError(
        f"{quoted(text)} is not a target: {problem}. Targets are HOST, HOST:PORT, [IPV6]:PORT or unix:PATH"
    )
