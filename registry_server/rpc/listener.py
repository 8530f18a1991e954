"""``Listener``: grpc.aio's server, begun anew where a stranger has ended it.

grpc.aio (1.85) decodes the path of each call as UTF-8 in its accept loop, and nothing there expects it to be anything
else: after one request with a byte that is not, from anyone who reaches the port, the server listens no more. It lets
calls under way finish, and that is all that it does. So we look after it, and put another one in its place.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import grpc
import structlog

from registry_server.runtime.tasks import cancel

LOOK_EVERY: Final = 0.1
"""Seconds for which nobody may be listening."""
_LONGEST_CALL: Final = 30 * 24 * 60 * 60.0
"""Seconds that a call may go on in a server that was ended."""
_GRPC_LOG: Final = "grpc._cython.cygrpc"
_CLIENT_LEFT: Final = "ExecuteBatchError raised in core"

log = structlog.get_logger(__name__)


class Listener:
    """Serves at one address for as long as it runs."""

    def __init__(self, make: Callable[[], grpc.aio.Server], bind: Callable[[grpc.aio.Server, str], int]) -> None:
        """Prepares it.

        Args:
            make: Makes a server with all its handlers.
            bind: Has a server listen at an address; gives the port. Raises ``RuntimeError`` if it cannot.
        """
        self._make, self._bind = make, bind
        self._server: grpc.aio.Server | None = None
        self._ended: dict[asyncio.Task[None], grpc.aio.Server] = {}
        """Servers that were ended and have calls under way, which may be watches that go on for days."""
        self._task: asyncio.Task[None] | None = None

    async def start(self, address: str) -> str:
        """Begins to serve; gives the address with the port that was taken.

        Raises:
            RuntimeError: The address cannot be listened on.
        """
        for name in (_GRPC_LOG, "asyncio"):
            logging.getLogger(name).addFilter(_is_of_ours)
        server = self._make()
        port = self._bind(server, address)
        taken = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        await server.start()
        self._server = server
        self._task = asyncio.create_task(self._look_after(server, taken), name="gRPC listener")
        return taken

    async def stop(self, grace: float | None) -> None:
        """Refuses new calls, lets those under way finish, and cuts what is left after ``grace`` seconds."""
        if self._task is not None:
            await cancel([self._task])
        ended = dict(self._ended)
        await cancel(list(ended))
        servers = [*ended.values(), *([self._server] if self._server is not None else [])]
        # One by one would be a grace for each.
        await asyncio.gather(*(_stop(server, grace) for server in servers))

    async def _look_after(self, server: grpc.aio.Server, address: str) -> None:
        while True:
            try:
                if not await server.wait_for_termination(timeout=LOOK_EVERY):
                    return
            except UnicodeDecodeError:
                log.warning("gRPC was ended by a call whose path is no text; it listens again", address=address)
                rest = asyncio.create_task(_free(server), name="ended gRPC server")
                self._ended[rest] = server
                rest.add_done_callback(self._ended.pop)
                self._server = server = await self._another(address)

    async def _another(self, address: str) -> grpc.aio.Server:
        while True:
            server = self._make()
            try:
                self._bind(server, address)
            except RuntimeError:  # the old one is not quite gone
                await server.stop(None)
                await asyncio.sleep(LOOK_EVERY)
            else:
                await server.start()
                return server


async def _free(server: grpc.aio.Server) -> None:
    """Waits until an ended server has no more calls under way, and gives back what it holds."""
    # Not wait_for_termination: cancelled, that would take what the stop waits for with it.
    await server.stop(_LONGEST_CALL)


async def _stop(server: grpc.aio.Server, grace: float | None) -> None:
    try:
        await server.stop(grace)
    except UnicodeDecodeError:  # it was ended at this moment; that has begun the stop, and this goes on with it
        await server.stop(grace)


def _is_of_ours(record: logging.LogRecord) -> bool:
    """Leaves out what gRPC logs as errors where clients send bytes that are no text, or leave in the middle of a call.

    A stranger decides how often that is, and the bytes may be a secret.
    """
    if record.name == _GRPC_LOG and record.getMessage().startswith(_CLIENT_LEFT):
        return False
    for error in (record.msg, record.exc_info[1] if record.exc_info else None):
        if isinstance(error, UnicodeDecodeError) and _is_of_grpc(error):
            return False
    return True


def _is_of_grpc(error: UnicodeDecodeError) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "_cygrpc" in trace.tb_frame.f_code.co_filename
