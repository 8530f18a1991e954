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

from registry_server.tasks import cancel

LOOK_EVERY: Final = 0.1
"""Seconds for which nobody may be listening."""
_GRPC_LOG: Final = "grpc._cython.cygrpc"

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
        self._servers: list[grpc.aio.Server] = []
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
        self._servers.append(server)
        self._task = asyncio.create_task(self._look_after(taken), name="gRPC listener")
        return taken

    async def stop(self, grace: float | None) -> None:
        """Refuses new calls, lets those under way finish, and cuts what is left after ``grace`` seconds."""
        if self._task is not None:
            await cancel([self._task])
        # One by one would be a grace for each.
        await asyncio.gather(*(_stop(server, grace) for server in self._servers))

    async def _look_after(self, address: str) -> None:
        while True:
            try:
                if not await self._servers[-1].wait_for_termination(timeout=LOOK_EVERY):
                    return
            except UnicodeDecodeError:
                log.warning("gRPC was ended by a call whose path is no text; it listens again", address=address)
                await self._begin_again(address)

    async def _begin_again(self, address: str) -> None:
        # The old ones have calls under way, which may be watches that go on for days.
        self._servers = [server for server in self._servers if not await _is_over(server)]
        while True:
            server = self._make()
            try:
                self._bind(server, address)
            except RuntimeError:  # the old one is not quite gone
                await server.stop(None)
                await asyncio.sleep(LOOK_EVERY)
                continue
            await server.start()
            self._servers.append(server)
            return


async def _stop(server: grpc.aio.Server, grace: float | None) -> None:
    try:
        await server.stop(grace)
    except UnicodeDecodeError:  # it was ended at this moment; that has begun the stop, and this goes on with it
        await server.stop(grace)


async def _is_over(server: grpc.aio.Server) -> bool:
    """Whether an ended server has no more calls under way; then frees it."""
    try:
        return not await server.wait_for_termination(timeout=0.001)
    except UnicodeDecodeError:
        return False


def _is_of_ours(record: logging.LogRecord) -> bool:
    """Leaves out what gRPC logs of bytes that are no text: a stranger decides how often, and they may be a secret."""
    for error in (record.msg, record.exc_info[1] if record.exc_info else None):
        if isinstance(error, UnicodeDecodeError) and _is_of_grpc(error):
            return False
    return True


def _is_of_grpc(error: UnicodeDecodeError) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "_cygrpc" in trace.tb_frame.f_code.co_filename
