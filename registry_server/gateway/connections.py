"""``Connections``: the open connections and the bytes that they hold, with a share for each address."""

import resource
from itertools import islice
from typing import Final, Protocol

import structlog

from registry_server.config import HttpSettings
from registry_server.instrumentation.log_budget import LogBudget
from registry_server.security.identity import network_of
from registry_server.security.limits import Shares

_CANDIDATES: Final = 16
"""Oldest connections of an address among which an idle one is searched."""

log = structlog.get_logger(__name__)


class Closable(Protocol):
    """A connection, as far as it can be closed in favour of another."""

    @property
    def idle(self) -> bool:
        """Whether it neither has a request nor receives one."""

    def force_close(self) -> None:
        """Close it."""


class Connections:
    """The open connections of a server."""

    def __init__(self, settings: HttpSettings, max_bytes: int) -> None:
        """Set the limits.

        Args:
            settings: Maximum number of connections.
            max_bytes: Bytes that all connections may hold: headers that are not complete or not handled yet, and
                answers that their clients do not read.
        """
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.places = Shares(min(settings.max_connections, files // 2))
        """One for each connection, beginning before its TLS handshake."""
        self.bytes = Shares(max_bytes)
        self._open: dict[str, dict[Closable, None]] = {}
        self._log_budget = LogBudget()

    def accept(self, address: str) -> "Place | None":
        """Return a place for a new connection; ``None`` = close it.

        If the address has used up its share, its oldest idle connection is closed instead, as a client expects at any
        time.
        """
        network = network_of(address)
        if not self.places.take(network, 1):
            self.log("HTTP connection closed", limit="http.max_connections", peer=address)
            oldest = islice(self._open.get(network, ()), _CANDIDATES)
            idle = next((connection for connection in oldest if connection.idle), None)
            if idle is None:
                return None
            self.places.hold(network, 1)  # the other is closed in the next turn of the event loop
            del self._open[network][idle]
            idle.force_close()
        return Place(self, network)

    def log(self, event: str, **fields: str) -> None:
        """Log that a connection was closed because of a limit, at a limited rate."""
        suppressed = self._log_budget.take_line(event)
        if suppressed is not None:
            log.info(event, **fields, **({"suppressed": suppressed} if suppressed else {}))


class Place:
    """The place of one connection, and the bytes that it holds."""

    __slots__ = ("_connections", "_held", "_network", "_released")

    def __init__(self, connections: Connections, network: str) -> None:
        self._connections, self._network = connections, network
        self._held = 0
        self._released = False

    def occupy(self, connection: Closable) -> None:
        """Register the connection once it is established."""
        self._connections._open.setdefault(self._network, {})[connection] = None  # noqa: SLF001 - its other half

    def hold(self, size: int) -> bool:
        """Set the number of bytes that the connection holds; return whether the limits allow it."""
        total, more = self._connections.bytes, size - self._held
        if more > 0 and not total.take(self._network, more):
            return False
        if more < 0:
            total.give_back(self._network, -more)
        self._held = size
        return True

    def log(self, event: str, **fields: str) -> None:
        """Log that the connection was closed because of a limit, at a limited rate."""
        self._connections.log(event, **fields)

    def release(self, connection: Closable | None = None) -> None:
        """Free the place and the bytes; later calls do nothing."""
        if self._released:
            return
        self._released = True
        self.hold(0)
        self._connections.places.give_back(self._network, 1)
        others = self._connections._open.get(self._network, {})  # noqa: SLF001
        if connection is not None:
            others.pop(connection, None)
        if not others:
            self._connections._open.pop(self._network, None)  # noqa: SLF001
