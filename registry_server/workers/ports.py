"""Ports that several processes listen on together (``SO_REUSEPORT``): the kernel shares connections out among them."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from registry_server.config import HostPort, split_host_port
from registry_server.errors import ConfigurationError

_UNIX: Final = "unix:"


@contextmanager
def reserved(setting: str, address: str) -> Iterator[str]:
    """Keeps a port for our own workers; gives the address with the port that was taken.

    The socket that keeps it does not listen, so the kernel gives it no connections.

    Args:
        setting: Name of the setting that the address is from.
        address: Where to listen; port 0 = a free one.

    Raises:
        ConfigurationError: It cannot be listened on, or somebody else does.
    """
    if address.startswith(_UNIX):
        raise ConfigurationError(f"{setting}: a unix socket serves one worker; set workers to 1 or use a TCP address")
    parts = split_host_port(address)
    if parts is None:
        raise ConfigurationError(f"{setting}: must be HOST:PORT")
    with ExitStack() as stack:
        try:
            port = _free(parts)
            stack.enter_context(_bound(parts._replace(port=port), shared=True))
        except OSError as error:
            raise ConfigurationError(f"{setting}: cannot listen on {address}: {error.strerror}") from error
        yield f"{address.rpartition(':')[0]}:{port}"


def _free(address: HostPort) -> int:
    """Makes sure that nobody else listens there: another registry with workers would share the port unnoticed."""
    with _bound(address, shared=False) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextmanager
def _bound(address: HostPort, *, shared: bool) -> Iterator[socket.socket]:
    infos = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, where = infos[0]
    with socket.socket(family, kind, protocol) as taken:
        # Without the first, connections of a registry that has just ended would count as somebody who listens.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
        taken.bind(where)
        yield taken
