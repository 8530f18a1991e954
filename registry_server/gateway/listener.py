"""``Listener``: accepts connections and counts them before anything is read from them.

The servers of asyncio and uvloop accept every connection, and report it only after its TLS handshake.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from registry_server.config.addresses import HostPort
from registry_server.gateway.connections import Connections, Place
from registry_server.runtime.listening import bind_sockets

RECEIVE_BUFFER_BYTES: Final = 64 << 10
"""Receive buffer of a connection in the kernel. It also limits how much arrives in one turn of the event loop."""
SEND_BUFFER_BYTES: Final = 128 << 10
"""Send buffer of a connection in the kernel, which would otherwise hold megabytes that a client does not read."""
_BACKLOG: Final = 128
_ACCEPTED_PER_TURN: Final = 32
_RETRY_SECONDS: Final = 1.0
"""Pause after accepting failed, such as without free files."""

log = structlog.get_logger(__name__)


class Listener:
    """Accepts the connections of one server."""

    def __init__(
        self,
        make_protocol: Callable[[Place], asyncio.Protocol],
        connections: Connections,
        *,
        tls: ssl.SSLContext | None,
        handshake_timeout: float,
    ) -> None:
        """Create the listener; ``start`` listens.

        Args:
            make_protocol: Makes the protocol of a connection, which releases its place when the connection is lost.
            connections: Counts the connections.
            tls: Context of the server; ``None`` = plaintext.
            handshake_timeout: Maximum duration of a TLS handshake, in seconds.
        """
        self._make_protocol, self._connections = make_protocol, connections
        self._tls = tls
        self._handshake_timeout = None if tls is None else handshake_timeout
        self._sockets: list[socket.socket] = []
        self._handshakes: set[asyncio.Task[None]] = set()

    async def start(self, address: HostPort, *, shared_port: bool) -> int:
        """Listen on all addresses of a host; return the port.

        Raises:
            OSError: That failed.
        """
        # In a thread: a name is resolved.
        self._sockets = await asyncio.to_thread(bind_sockets, *address, reuse_port=shared_port)
        for listening in self._sockets:
            # Connections inherit both.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            listening.setblocking(False)  # noqa: FBT003 - the name of the argument is not public
            listening.listen(_BACKLOG)
            self._watch(listening)
        port: int = self._sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Stop accepting connections; those that were accepted continue."""
        loop = asyncio.get_running_loop()
        for listening in self._sockets:
            loop.remove_reader(listening)
            listening.close()
        self._sockets.clear()
        for handshake in self._handshakes:
            handshake.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _watch(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_ACCEPTED_PER_TURN):
            try:
                connection, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("HTTP connection not accepted", error=str(error))
                loop.remove_reader(listening)
                loop.call_later(_RETRY_SECONDS, self._watch, listening)
                return
            place = self._connections.accept(peer[0])
            if place is None:
                connection.close()
                continue
            handshake = loop.create_task(self._connect(connection, place), name="http-handshake")
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)

    async def _connect(self, connection: socket.socket, place: Place) -> None:
        """Complete the TLS handshake, and hand the connection over to its protocol."""
        connected = False
        try:
            with suppress(OSError):  # of the client: it left, or its handshake is not valid or too slow
                connection.setblocking(False)  # noqa: FBT003
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: self._make_protocol(place),
                    connection,
                    ssl=self._tls,
                    ssl_handshake_timeout=self._handshake_timeout,
                )
                connected = True
        finally:
            if not connected:
                place.release()
                connection.close()
