"""Ports on which several processes listen (``SO_REUSEPORT``): the kernel distributes connections among them."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from registry_server.config import split_host_port
from registry_server.errors import ConfigurationError
from registry_server.runtime.listening import bind_sockets


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
            with _closing(bind_sockets(*parts, reuse_port=False)) as found:
                port = found[0].getsockname()[1]
            stack.enter_context(_closing(_share(parts.host, port)))
        except OSError as error:
            raise ConfigurationError(f"{setting}: cannot listen on {address}: {error.strerror}") from error
        yield f"{address.rpartition(':')[0]}:{port}"


def _share(host: str, port: int) -> list[socket.socket]:
    try:
        # Another supervisor that starts at the same time then finds the port in use.
        return bind_sockets(host, port, reuse_port=True, reuse_address=False)
    except OSError:  # connections of a registry that has just exited, to clients that have not closed them yet
        return bind_sockets(host, port, reuse_port=True)


@contextmanager
def _closing(sockets: list[socket.socket]) -> Iterator[list[socket.socket]]:
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()
