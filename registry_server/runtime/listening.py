"""Sockets to listen on. A host means the same for HTTP, for several workers, and for gRPC, which binds its own."""

import errno
import socket
from contextlib import ExitStack
from typing import Any, Final

_HOSTS: Final = {
    **dict.fromkeys(("0.0.0.0", "::"), ("0.0.0.0", "::")),  # noqa: S104 - the settings decide
    "localhost": ("127.0.0.1", "::1"),
}
"""As in gRPC. One socket for both protocols would report IPv4 clients with an address of IPv6."""
_NOT_AVAILABLE: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
"""Errors for an address of a protocol that this machine does not have."""


def bind_sockets(host: str, port: int, *, reuse_port: bool, reuse_address: bool = True) -> list[socket.socket]:
    """Bind a socket to each address of a host; none of them listens yet.

    Args:
        host: Name or address; ``0.0.0.0`` and ``::`` both are all interfaces with IPv4 and IPv6.
        port: Port; 0 = any free one, the same for all addresses.
        reuse_port: Whether other processes use the port, too.
        reuse_address: Whether connections of a process that has exited may still use it.

    Raises:
        OSError: The port is in use, or the host has no address of this machine.
    """
    bound: list[socket.socket] = []
    missing: OSError | None = None
    with ExitStack() as stack:
        for family, address in _addresses(host, port):
            number = bound[0].getsockname()[1] if bound else address[1]
            try:
                each = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(reuse_port))
                if family == socket.AF_INET6:
                    each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                each.bind((address[0], number, *address[2:]))
            except OSError as error:
                if error.errno not in _NOT_AVAILABLE:
                    raise
                missing = error
            else:
                bound.append(each)
        if not bound and missing is not None:
            raise missing
        stack.pop_all()
    return bound


def _addresses(host: str, port: int) -> dict[tuple[socket.AddressFamily, Any], None]:
    found = [
        info
        for each in _HOSTS.get(host, (host,))
        for info in socket.getaddrinfo(each, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    ]
    return dict.fromkeys((info[0], info[4]) for info in found)
