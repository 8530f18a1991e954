"""Ports on which several processes listen (``SO_REUSEPORT``): the kernel distributes connections among them."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from registry_server.config import HostPort, split_host_port
from registry_server.errors import ConfigurationError


@contextmanager
def reserve_port(setting: str, address: str) -> Iterator[str]:
    """Reserve a port for the workers, and yield the address with the actual port.

    The socket that reserves it does not listen, so it receives no connections.

    Args:
        setting: Name of the setting that holds the address.
        address: ``HOST:PORT``; port 0 = any free port.

    Raises:
        ConfigurationError: The address cannot be used, or another program listens on it.
    """
    if address.startswith("unix:"):
        raise ConfigurationError(f"{setting}: a unix socket serves one worker; set workers to 1 or use a TCP address")
    parts = split_host_port(address)
    if parts is None:
        raise ConfigurationError(f"{setting}: must be HOST:PORT")
    with ExitStack() as stack:
        try:
            # First without sharing: otherwise the workers would silently share the port of another registry.
            with _bound_socket(parts, shared=False) as bound:
                port = bound.getsockname()[1]
            stack.enter_context(_bound_socket(parts._replace(port=port), shared=True))
        except OSError as error:
            raise ConfigurationError(f"{setting}: cannot listen on {address}: {error.strerror}") from error
        yield f"{address.rpartition(':')[0]}:{port}"


@contextmanager
def _bound_socket(address: HostPort, *, shared: bool) -> Iterator[socket.socket]:
    infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, socket_address = infos[0]
    with socket.socket(family, kind, protocol) as bound:
        # Without SO_REUSEADDR, connections of a registry that has just exited would make the port appear in use.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        bound.bind(socket_address)
        yield bound
